"""The tests of a real Serve on the newest patch of each supported minor version of Ray.

    python -m tests.ray.versions [2.57 ...]

Each version has a virtual environment of its own, `.venv-ray/2.57`, made when it is first needed
and brought up to date by pip at each run. The versions take their turns one after another. At the
end stands a table, and status 1 if a test failed or a version could not be installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import click
from rich.console import Console
from rich.table import Table

from serve_grpc._serve.versions import NEWEST, OLDEST

__all__ = ["SUITE", "VERSIONS", "Outcome", "main", "outcome_of"]

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-ray"
VERSIONS = tuple(f"{OLDEST[0]}.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1))

SUITE = (
    "tests/unit/test_private_names.py",
    "tests/unit/test_handle_options.py",
    "tests/unit/test_call_signatures.py",
    "tests/ray/test_serve_callers.py",  # unary calls and streams
    "tests/ray/test_serve_errors.py",
    "tests/ray/test_serve_user_errors.py",
    "tests/ray/test_serve_giving_up.py",  # deadlines, cancelling, flow control
    "tests/ray/test_serve_admission.py",
    "tests/ray/test_serve_accounting.py",
    "tests/ray/test_serve_composition.py",
    "tests/ray/test_serve_kinds_of_code.py",  # enable, FastAPI, config file
    "tests/ray/test_serve_transport_choice.py",  # fallback, local testing mode
    "tests/ray/test_serve_replicas.py",  # death, drain
    "tests/ray/test_ray_benchmarks.py",
)
"""What touches each of Ray's private names; about a minute and a half for a version."""
LIMIT_S = 1800.0  # for one version's tests: ends a run that hangs


@dataclass(frozen=True)
class Outcome:
    """What came of one version.

    Attributes:
        ray: The installed patch, "–" if there is none.
        skipped: Why tests were left out, each reason once.
        problem: Why there is no result of tests; "" if there is one.
    """

    ray: str
    passed: int = 0
    failed: int = 0
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0
    problem: str = ""

    @property
    def is_good(self) -> bool:
        """Whether tests ran, and none failed."""
        return not self.problem and self.passed > 0 and self.failed == 0


def outcome_of(report: Path, ray: str, seconds: float) -> Outcome:
    """Read pytest's JUnit report.

    Raises:
        OSError: There is none.
    """
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or _has_error(case)]
    skips = [skip for case in cases for skip in case.iter("skipped")]
    reasons = tuple(dict.fromkeys(skip.get("message", "") for skip in skips))
    passed = len(cases) - len(failed) - len(skips)
    return Outcome(ray, passed, len(failed), reasons, seconds)


def _has_error(case: ElementTree.Element) -> bool:
    return case.find("error") is not None


# ---------------------------------------------------------------- one version


def _try_version(version: str, console: Console) -> Outcome:
    python = ENVIRONMENTS / version / "bin" / "python"
    console.rule(f"Ray {version}")
    console.print("installing ...")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    wanted = ["--editable", ".[dev]", f"ray[serve]=={version}.*"]
    if subprocess.run([*pip, *wanted], cwd=ROOT).returncode:
        return Outcome("–", problem="could not be installed")
    ray = _installed(python)
    console.print(f"testing Ray {ray} ...")
    report = ENVIRONMENTS / f"{version}.xml"
    report.unlink(missing_ok=True)
    begin = time.monotonic()
    command = [python, "-m", "pytest", "-q", "-rs", f"--junit-xml={report}", *SUITE]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        subprocess.run(command, cwd=ROOT, env=env, timeout=LIMIT_S, check=False)
        return outcome_of(report, ray, time.monotonic() - begin)
    except subprocess.TimeoutExpired:
        return Outcome(ray, problem=f"not done after {LIMIT_S:g} s")
    except OSError:
        return Outcome(ray, problem="pytest ended without a report")


def _installed(python: Path) -> str:
    code = "from importlib.metadata import version; print(version('ray'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _table(outcomes: dict[str, Outcome]) -> Table:
    table = Table(title="serve_grpc on each supported Ray", title_justify="left")
    for heading in ("Ray", "patch"):
        table.add_column(heading, no_wrap=True)
    for heading in ("passed", "failed", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("left out")
    table.add_column("", no_wrap=True)
    for version, outcome in outcomes.items():
        table.add_row(
            version,
            outcome.ray,
            str(outcome.passed),
            str(outcome.failed),
            f"{outcome.seconds:.0f} s",
            outcome.problem or "\n".join(outcome.skipped) or "–",
            "[green]good[/]" if outcome.is_good else "[red]bad[/]",
        )
    return table


@click.command(help=__doc__)
@click.argument("versions", nargs=-1, type=click.Choice(VERSIONS))
def main(versions: tuple[str, ...]) -> None:
    console = Console(highlight=False)
    outcomes = {version: _try_version(version, console) for version in versions or VERSIONS}
    console.print(_table(outcomes))
    sys.exit(not all(outcome.is_good for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
