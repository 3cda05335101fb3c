"""What the fault suite measures, beside what is required.

A test writes down each figure before it asserts it, so a miss is shown too. `make test-faults`
keeps them in a file from which `python -m tests.faults.page` writes the table of
docs/reliability.md.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Figure", "load", "record", "recorded", "save"]


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


def save(path: Path) -> None:
    """Write this run's figures."""
    text = json.dumps([asdict(figure) for figure in recorded], indent=1, ensure_ascii=False)
    path.write_text(text + "\n")


def load(path: Path) -> list[Figure]:
    """The figures of a run."""
    return [Figure(**fields) for fields in json.loads(path.read_text())]
