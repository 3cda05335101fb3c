"""The searched text: the project's Markdown files and the docstrings of its modules.

A passage is one section of a document, or one docstring. Passages are made once by whoever binds
the application and travel to the replicas as an init argument. Nothing here ranks or serves.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$")


@dataclass(frozen=True)
class Passage:
    """A piece of text and where it stands."""

    source: str
    """Path of the file, from the project's root."""
    heading: str
    text: str


def load(root: Path = ROOT) -> list[Passage]:
    """Read every passage there is under `root`, in a stable order."""
    documents = [root / "README.md", root / "CHANGELOG.md", root / "CONTRIBUTING.md"]
    documents += sorted((root / "docs").rglob("*.md"))
    modules = sorted((root / "serve_grpc").rglob("*.py"))
    found: list[Passage] = []
    for path in filter(Path.exists, documents):
        found += sections(path.relative_to(root).as_posix(), path.read_text())
    for path in (p for p in modules if "_generated" not in p.parts):
        if docstring := ast.get_docstring(ast.parse(path.read_text())):
            source = path.relative_to(root).as_posix()
            found.append(Passage(source, docstring.splitlines()[0], docstring))
    return found


def sections(source: str, markdown: str) -> Iterator[Passage]:
    """Cut a Markdown document at its headings; a `#` inside a code block is not one."""
    heading, lines, in_code = source, list[str](), False
    for line in [*markdown.splitlines(), "# end"]:
        in_code ^= line.lstrip().startswith("```")
        match = None if in_code else HEADING.match(line)
        if match is None:
            lines.append(line)
            continue
        if text := "\n".join(lines).strip():
            yield Passage(source, heading, text)
        heading, lines = match[1], []
