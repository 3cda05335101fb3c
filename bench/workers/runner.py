"""Runs a plan: starts the workers one after another and collects what they send.

This process starts no Ray and measures nothing itself. A worker that ends early, or that takes far
longer than planned and is ended, leaves samples that say so; the run goes on with the next worker.
A sample that was carried by something else than its contender says loses its numbers, and the run
has failed. On Ctrl-C the worker at work is asked to end, and waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from bench.plan.contenders import parse
from bench.plan.plans import Plan
from bench.results.costs import cost_rows
from bench.results.run import CaseResult, Sample
from bench.workers import estimate
from bench.workers.groups import ROOT, Group, environment, groups
from bench.workers.protocol import Order, messages

__all__ = ["Watcher", "checked", "run_plan"]

STOP_S = 30.0  # for a worker that was asked to end; Ray takes a few seconds of it
SLOWEST = 3.0  # how much longer than planned a worker may take
PATIENCE_S = 120.0  # and this on top
DOORS = [sys.executable, "-m", "bench.doors"]
GROWTH = [sys.executable, "-m", "bench.growth"]
COSTS = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "bench/micro"]


class Watcher(Protocol):
    """Is told how a run gets on."""

    def doing(self, text: str) -> None:
        """What happens now."""

    def passed(self, seconds: float) -> None:
        """Work that was planned to take `seconds` is done."""

    def finished(self, result: CaseResult) -> None:
        """A case has all its samples."""

    def failed(self, text: str) -> None:
        """Something other than one sample went wrong."""


def run_plan(
    plan: Plan, logs: Path, watcher: Watcher
) -> tuple[list[CaseResult], list[dict[str, Any]]]:
    """Measure everything in the plan.

    Args:
        logs: Directory for what the processes write to stderr.

    Returns:
        The cases in the plan's order, each with a sample per round and contender, and the rows of
        the growth measurements, of the doors, and of what the parts of a call cost.
    """
    results = {case.id: CaseResult(case) for case in plan.cases}
    for group in groups(plan.cases):
        watcher.doing(f"{group.name}: starting")
        _run_group(group, plan, results, logs / f"{group.name}.log", watcher)
    rows: list[dict[str, Any]] = []
    if plan.has_growth:
        rows += _run_rows("growth", GROWTH, estimate.GROWTH_S, logs, watcher)
    if plan.has_doors:
        rows += _run_rows("doors", DOORS, estimate.DOORS_S, logs, watcher)
    if plan.has_costs:
        rows += _run_costs(logs / "costs.log", watcher)
    return list(results.values()), rows


def _run_group(
    group: Group, plan: Plan, results: dict[str, CaseResult], log: Path, watcher: Watcher
) -> None:
    order = Order(group.cases, plan.rounds, plan.window_s)
    planned_s = sum(estimate.case_s(case, plan.rounds, plan.window_s) for case in group.cases)
    limit_s = SLOWEST * planned_s + PATIENCE_S
    command = [sys.executable, "-m", group.module]
    missing = {case.id: len(case.contenders) * order.rounds_of(case) for case in group.cases}
    starting_s = group.start_s
    with _child(command, environment(os.environ, group.variables), log, limit_s) as child:
        for message in messages(child, order):
            if isinstance(message, str):
                watcher.doing(f"{group.name}: {message}")
                continue
            result, sample = results[message[0]], checked(message[1])
            if sample.error is not None and sample.carrier:
                watcher.failed(f"{result.case.id}: {sample.contender}: {sample.error}")
            result.samples.append(sample)
            missing[result.case.id] -= 1
            watcher.doing(f"{result.case.id}: {sample.contender}")
            window_s = estimate.window_s(result.case, sample.contender, plan.window_s)
            watcher.passed(starting_s + window_s)
            starting_s = 0.0
            if not missing[result.case.id]:
                watcher.finished(result)
    if child.returncode or any(missing.values()):
        reason = f"the worker ended with status {child.returncode}, see {log.name}"
        watcher.failed(f"{group.name}: {reason}")
        for case in group.cases:
            _fill(results[case.id], order.rounds_of(case), reason)
            if missing[case.id]:
                watcher.finished(results[case.id])


def checked(sample: Sample) -> Sample:
    """The sample, or one without numbers if its contender was not carried by what it says."""
    wanted = parse(sample.contender).carrier
    if sample.error is not None or sample.carrier == wanted:
        return sample
    carrier = sample.carrier or "nothing known"
    reason = f"carried by {carrier} instead of {wanted or 'none of serve_grpc'}"
    return Sample(sample.contender, sample.round, carrier=carrier, error=reason)


def _fill(result: CaseResult, rounds: int, reason: str) -> None:
    """Add a sample with the reason where one is missing."""
    there = {(sample.contender, sample.round) for sample in result.samples}
    for number in range(rounds):
        for contender in result.case.contenders:
            if (contender, number) not in there:
                result.samples.append(Sample(contender, number, error=reason))


def _run_rows(
    name: str, command: list[str], planned_s: float, logs: Path, watcher: Watcher
) -> list[dict[str, Any]]:
    """The rows that a program without Ray prints, one JSON object a line."""
    rows = []
    log = logs / f"{name}.log"
    watcher.doing(f"{name}: starting")
    limit_s = SLOWEST * planned_s + PATIENCE_S
    with _child(command, environment(os.environ, {}), log, limit_s) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        for line in child.stdout:
            rows.append(json.loads(line))
            watcher.doing(f"{name}: {rows[-1]['name']}")
    watcher.passed(planned_s)
    if child.returncode:
        watcher.failed(f"{name}: ended with status {child.returncode}, see {log.name}")
    return rows


def _run_costs(log: Path, watcher: Watcher) -> list[dict[str, Any]]:
    watcher.doing("costs: starting pytest")
    limit_s = SLOWEST * estimate.COSTS_S + PATIENCE_S
    with tempfile.TemporaryDirectory(prefix="costs-") as directory:
        path = Path(directory) / "micro.json"
        command = [*COSTS, f"--benchmark-json={path}"]
        with _child(command, environment(os.environ, {}), log, limit_s) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.close()
            output = []
            for line in child.stdout:
                output.append(line)
                _, _, test = line.partition("::")
                if test:  # "bench/micro/test_cost_codec.py::test_batch_to_bytes[replies] PASSED"
                    watcher.doing(f"costs: {test.split()[0]}")
        watcher.passed(estimate.COSTS_S)
        if child.returncode:
            with log.open("a") as file:
                file.writelines(output)
            watcher.failed(f"costs: ended with status {child.returncode}, see {log.name}")
            return []
        return cost_rows(path)


@contextlib.contextmanager
def _child(
    command: list[str], env: dict[str, str], log: Path, limit_s: float
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, so that Ctrl-C reaches it only through here.

    It is asked to end when `limit_s` is over or the block is left by an exception, and killed with
    all of its process group if it does not.
    """
    with log.open("w") as stderr:
        child = subprocess.Popen(
            command,
            env=env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    timer = threading.Timer(limit_s, child.terminate)
    timer.daemon = True
    timer.start()
    try:
        yield child
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it is asked, below
            child.wait(STOP_S)
    finally:
        timer.cancel()
        child.terminate()
        try:
            child.wait(STOP_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # Ctrl-C once more
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
