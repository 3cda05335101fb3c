"""What the fault suite measures, beside what is required.

A test writes down each figure before it asserts it, so a miss is shown too. `make test-faults`
keeps them in a file from which `python -m tests.faults.page` writes the table of
docs/reliability-run.md.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

__all__ = ["Figure", "load", "record", "recorded", "save", "setting"]


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        row: Number in the list of faults.
        fault: What was done, in a few words.
        what: What was measured, with its unit.
        required: As text, "≤ 1 s".
        measured: As text, "0.21 s".
        test: Node id of the test, without its directory.
    """

    row: int
    fault: str
    what: str
    required: str
    measured: str
    test: str


recorded: list[Figure] = []


def record(figure: Figure) -> None:
    """Keep a figure of this run."""
    recorded.append(figure)


def setting() -> str:
    """Where this run took place, as far as it matters to the figures."""
    versions = [f"{name} {version(name)}" for name in ("ray", "grpcio")]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([f"{os.cpu_count()} cores", platform.system(), python, *versions])


def save(path: Path) -> None:
    """Write this run's figures."""
    run = {"setting": setting(), "figures": [asdict(figure) for figure in recorded]}
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")


def load(path: Path) -> tuple[str, list[Figure]]:
    """The setting and the figures of a run."""
    run = json.loads(path.read_text())
    return run["setting"], [Figure(**fields) for fields in run["figures"]]
