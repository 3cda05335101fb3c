"""The table of figures in docs/reliability-run.md, written from a run of the fault suite.

make test-faults
python -m tests.faults.page .faults.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tests.faults.figures import Figure, load

__all__ = ["PAGE", "rendered", "with_table"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability-run.md"
BEGIN, END = "<!-- figures: written by tests/faults/page.py -->", "<!-- end of figures -->"


def rendered(setting: str, figures: Iterable[Figure]) -> str:
    """The table, by row; equal lines of several tests of one file are one line."""
    tests: dict[tuple[int, str, str, str, str], list[str]] = {}
    for figure in figures:
        line = (figure.row, figure.fault, figure.what, figure.required, figure.measured)
        tests.setdefault(line, []).append(figure.test)
    lines = [
        f"Run on: {setting}.\n",
        "| row | fault | what | required | measured | test |",
        "| ---: | --- | --- | --- | --- | --- |",
    ]
    shown: tuple[int, str] | None = None
    for line in sorted(tests, key=lambda line: line[0]):
        row, fault, what, required, measured = line
        file = tests[line][0].split("::")[0]
        link = f"[{file.removeprefix('test_').removesuffix('.py')}](../tests/faults/{file})"
        # The fault is named once, where its lines begin.
        named = fault if shown != (row, fault) else ""
        shown = row, fault
        lines.append(f"| {row} | {named} | {what} | {required} | {measured} | {link} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, table: str) -> str:
    """The page with the table between its marks.

    Raises:
        ValueError: The page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}")
    return f"{before}{begin}\n\n{table}\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(), rendered(*load(Path(sys.argv[1])))))
