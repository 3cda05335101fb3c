"""docs/compatibility.md, written from the tests beside this file.

    python -m tests.ray.compat.page

A test of tests/test_docs.py compares the page with what this would write.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from tests.ray.compat.behaviours import TRANSPORTS, Behaviour, Difference

__all__ = ["PAGE", "SECTIONS", "rendered"]

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "compatibility.md"

SECTIONS = (
    "Execution",
    "Batching and multiplexing",
    "Routing",
    "Waiting and scaling",
    "Composition",
    "Ingress",
    "Operations",
    "Observability",
)

INTRODUCTION = """\
# Compatibility

What Ray Serve does for calls that are made through handles, and whether it still does it when
another transport carries them. There are three transports: Ray's actor calls (*by reference*,
Serve's default), Serve's own gRPC transport, and `serve_grpc`. `python -m tests.ray.compat.page`
writes this page from the tests that it links to. Each test runs once for each cell of its row, on a
real Ray Serve (2.60). If a cell does not say "yes", the test must fail there.
"""

DIFFERENCES = """\
## What differs

What a program may notice when its calls move from one transport to another. The test of a row
asserts what each of its cells says.

| what | {transports} | why serve_grpc does it so | test |
| --- | --- | --- | --- | --- | --- |
"""


def rows() -> Iterator[tuple[Behaviour | Difference, str]]:
    """Each marked test: what it shows, and the link to it."""
    for file in sorted(HERE.glob("test_*.py")):
        module = importlib.import_module(f"tests.ray.compat.{file.stem}")
        for name, test in vars(module).items():
            shown = getattr(test, "behaviour", None) or getattr(test, "difference", None)
            if name.startswith("test_") and shown is not None:
                yield shown, f"[{name.removeprefix('test_')}](../tests/ray/compat/{file.name})"


def _differences(found: list[tuple[Difference, str]]) -> str:
    lines = []
    for shown, link in found:
        cells = " | ".join(shown.does[t] for t in TRANSPORTS)
        lines.append(f"| {shown.text} | {cells} | {shown.why} | {link} |\n")
    return DIFFERENCES.format(transports=" | ".join(TRANSPORTS)) + "".join(lines)


def rendered() -> str:
    """The page."""
    every = list(rows())
    found = [(shown, link) for shown, link in every if isinstance(shown, Behaviour)]
    differences = [(shown, link) for shown, link in every if isinstance(shown, Difference)]
    unknown = {shown.section for shown, _ in found} - set(SECTIONS)
    if unknown:
        raise ValueError(f"sections that page.SECTIONS does not have: {sorted(unknown)}")
    parts = [INTRODUCTION, _differences(differences)]
    for section in SECTIONS:
        lines = [
            f"## {section}\n",
            f"| behaviour | {' | '.join(TRANSPORTS)} | test |",
            "| --- | --- | --- | --- | --- |",
        ]
        for shown, link in found:
            if shown.section == section:
                cells = " | ".join(shown.differs.get(t, "yes") for t in TRANSPORTS)
                lines.append(f"| {shown.text} | {cells} | {link} |")
        if len(lines) > 3:
            parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(rendered())
