"""The command: `python -m bench`.

Its exit status: 0 if everything was written, whether or not targets are met and windows failed (the
tables say so); 2 for wrong usage or a file that is no run; 3 if with `--compare` something of
serve_grpc got worse beyond noise; 130 if it was interrupted, and nothing was written.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import click
from rich.console import Console

from bench.plan.plans import Plan, full_plan, quick_plan
from bench.results import machine
from bench.results.run import Run
from bench.show.compare import print_comparison
from bench.show.table import LiveProgress, doors_table, failures_table, plan_table, targets_table
from bench.show.wording import duration
from bench.workers.groups import SERVE_FLAGS, seconds
from bench.workers.runner import run_plan

__all__ = ["main"]

OUT = Path(__file__).resolve().parent / "out"
WORSE = 3
PART_FAILED = 1
INTERRUPTED = 130
A_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Key cases only, 3 short rounds: under 3 minutes.")
@click.option(
    "--only",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="The case of this id, or all whose ids contain it (* and ? allowed); 'growth', 'costs' "
    "and 'doors' are three more, 'memory' one that is measured only if named. Repeatable.",
)
@click.option("--rounds", type=click.IntRange(min=1), help="Instead of the plan's number.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=OUT,
    show_default="bench/out",
    help="Directory for run.json, report.html, pictures and the processes' logs.",
)
@click.option("--list", "lists", is_flag=True, help="Show the cases and the time, run nothing.")
@click.option(
    "--compare",
    "old",
    type=A_FILE,
    help="Then print what changed since this run.json; exit with 3 if serve_grpc got worse.",
)
@click.option("--results", "new", type=A_FILE, help="With --compare: run nothing, compare this.")
def main(
    quick: bool,
    patterns: tuple[str, ...],
    rounds: int | None,
    out: Path,
    lists: bool,
    old: Path | None,
    new: Path | None,
) -> None:
    """Measure serve_grpc against Ray Serve's own transports, side by side.

    Contenders take turns round by round on one machine; ratios are formed inside each round. The
    full plan takes about 18 minutes and wants the machine for itself.

    Exit status: 0 measured, 1 a part of the run failed or the carrier was the wrong one, 2 wrong
    usage, 3 worse than --compare, 130 interrupted.
    """
    console = Console(highlight=False)
    if new is not None:
        if old is None:
            raise click.UsageError("--results goes with --compare")
        _compare(_load(old), _load(new), console)
        return
    plan = quick_plan() if quick else full_plan()
    if patterns:
        plan = plan.only(patterns)
    if rounds is not None:
        plan = replace(plan, rounds=rounds)
    if plan.is_empty:
        raise click.UsageError("no case has such an id; --list shows all")
    if lists:
        console.print(plan_table(plan))
        return
    before = _load(old) if old is not None else None  # a wrong file is better found out now
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the worker is to end with us
    try:
        run, has_failed = _measure(plan, out, console)
    except KeyboardInterrupt:
        console.print("stopped; nothing was written", style="red")
        sys.exit(INTERRUPTED)
    _write(run, out, console)
    if before is not None:
        _compare(before, run, console)
    if has_failed:
        sys.exit(PART_FAILED)


def _measure(plan: Plan, out: Path, console: Console) -> tuple[Run, bool]:
    out.mkdir(parents=True, exist_ok=True)
    console.print(
        f"{len(plan.cases)} cases, {plan.rounds} rounds, about {duration(seconds(plan))}; "
        f"logs in {click.format_filename(out)}"
    )
    facts = {**machine.machine(), "environment": SERVE_FLAGS}
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    begin = time.monotonic()
    with LiveProgress(plan, console) as progress:
        cases, growth = run_plan(plan, out, progress)
    run = Run(
        machine=facts,
        versions=machine.versions(),
        commit=machine.commit(),
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        started=started,
        seconds=round(time.monotonic() - begin, 1),
        is_quick=plan.is_quick,
        cases=cases,
        growth=growth,
    )
    return run, progress.has_failed


def _write(run: Run, out: Path, console: Console) -> None:
    """Save the run and its report, and print what it comes to."""
    from bench.show.report import write_report  # needs matplotlib, which takes a second to import

    run.save(out / "run.json")
    report = write_report(run, out)
    if any(result.case.targets for result in run.cases):
        console.print(targets_table(run))
    if doors := doors_table(run):
        console.print(doors)
    if failed := failures_table(run):
        console.print(failed)
    console.print(f"{duration(run.seconds)}; {out / 'run.json'}, {report}", soft_wrap=True)


def _load(path: Path) -> Run:
    try:
        return Run.load(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _compare(old: Run, new: Run, console: Console) -> None:
    """Print what changed; if something of serve_grpc got worse, this ends the process."""
    if print_comparison(old, new, console):
        sys.exit(WORSE)
