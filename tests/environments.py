"""Runs of pytest in virtual environments of their own, and a table of what came of them.

For the suites that are run with other versions than `.venv` has: `tests.ray.versions` and
`tests.dependencies` say which. An environment is made when it is first needed and brought up to
date by pip at each run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.table import Table

__all__ = ["PIP", "ROOT", "Environment", "Outcome", "outcome_of", "table_of"]

ROOT = Path(__file__).resolve().parents[1]
PIP = ("-m", "pip", "--disable-pip-version-check")


@dataclass(frozen=True)
class Outcome:
    """What came of one environment.

    Attributes:
        versions: What is installed there, in words; "–" if nothing is.
        skipped: Why tests were left out, each reason once.
        problem: Why there is no result of tests; "" if there is one.
    """

    versions: str
    passed: int = 0
    failed: int = 0
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0
    problem: str = ""

    @property
    def is_good(self) -> bool:
        """Whether tests ran, and none failed."""
        return not self.problem and self.passed > 0 and self.failed == 0


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the package and its development tools.

    Attributes:
        folder: Where it is; pytest's report is written beside it.
    """

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self, *wanted: str) -> bool:
        """Make the environment if there is none, and install what else is wanted, by pip's words.

        Everything is brought to the newest version that is allowed. Returns whether pip could.
        """
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
        newest = ["install", "--quiet", "--upgrade", "--upgrade-strategy", "eager"]
        command = [self.python, *PIP, *newest, "--editable", ".[dev]", *wanted]
        return subprocess.run(command, cwd=ROOT).returncode == 0

    def version_of(self, package: str) -> str:
        """The installed version.

        Raises:
            subprocess.CalledProcessError: There is none.
        """
        code = f"from importlib.metadata import version; print(version({package!r}))"
        command = [self.python, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def test(self, versions: str, suite: Iterable[str], *, limit_s: float) -> Outcome:
        """Run pytest with the arguments `suite`; a run that takes over `limit_s` is ended."""
        report = self.folder.with_name(f"{self.folder.name}.xml")
        report.unlink(missing_ok=True)
        begin = time.monotonic()
        command = [self.python, "-m", "pytest", "-q", "-rs", f"--junit-xml={report}", *suite]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            subprocess.run(command, cwd=ROOT, env=env, timeout=limit_s, check=False)
            return outcome_of(report, versions, time.monotonic() - begin)
        except subprocess.TimeoutExpired:
            return Outcome(versions, problem=f"not done after {limit_s:g} s")
        except OSError:
            return Outcome(versions, problem="pytest ended without a report")


def outcome_of(report: Path, versions: str, seconds: float) -> Outcome:
    """Read pytest's JUnit report.

    Raises:
        OSError: There is none.
    """
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or _has_error(case)]
    skips = [skip for case in cases for skip in case.iter("skipped")]
    reasons = tuple(dict.fromkeys(skip.get("message", "") for skip in skips))
    passed = len(cases) - len(failed) - len(skips)
    return Outcome(versions, passed, len(failed), reasons, seconds)


def _has_error(case: ElementTree.Element) -> bool:
    return case.find("error") is not None


def table_of(title: str, headings: tuple[str, str], outcomes: dict[str, Outcome]) -> Table:
    """A line for each environment; `headings` are those of its name and of its versions."""
    table = Table(title=title, title_justify="left")
    table.add_column(headings[0], no_wrap=True)
    table.add_column(headings[1])
    for heading in ("passed", "failed", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("left out")
    table.add_column("", no_wrap=True)
    for name, outcome in outcomes.items():
        table.add_row(
            name,
            outcome.versions,
            str(outcome.passed),
            str(outcome.failed),
            f"{outcome.seconds:.0f} s",
            outcome.problem or "\n".join(outcome.skipped) or "–",
            "[green]good[/]" if outcome.is_good else "[red]bad[/]",
        )
    return table
