"""Figures of the house: how long functions are, how large classes, how many lines are comments.

`python -m tests.house` prints them for the package; a folder as argument, those of another source.
A field is a name that a class's methods assign on `self`, or that its `__slots__` or annotations
declare. Comment lines are lines with nothing else on them; docstrings do not count.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FUNCTIONS", "Figures", "fields_of", "figures_of", "lines_of", "methods_of"]

PACKAGE = Path(__file__).resolve().parent.parent / "serve_grpc"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Figures:
    """Of the Python files under one folder.

    Attributes:
        functions: Lines of each function, by its name.
        classes: Methods and fields of each class, by its name.
        comments, lines: Lines that are comments only, and all that are not blank.
        files: Lines of each file, by its path.
    """

    functions: dict[str, int]
    classes: dict[str, tuple[int, int]]
    comments: int
    lines: int
    files: dict[str, int]

    @property
    def comment_share(self) -> float:
        """Comment lines in all lines that are not blank."""
        return self.comments / self.lines


def figures_of(folder: Path) -> Figures:
    """Read all Python files under `folder`, generated code left out."""
    functions: dict[str, int] = {}
    classes: dict[str, tuple[int, int]] = {}
    files: dict[str, int] = {}
    comments = lines = 0
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if "_generated" in name or "/tests/" in f"/{name}":
            continue
        source = path.read_text()
        files[name] = len(source.splitlines())
        lines += sum(bool(line.strip()) for line in source.splitlines())
        comments += _comment_lines(source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, FUNCTIONS):
                functions[f"{name}:{node.name}:{node.lineno}"] = lines_of(node)
            elif isinstance(node, ast.ClassDef):
                classes[f"{name}:{node.name}"] = methods_of(node), len(fields_of(node))
    return Figures(functions, classes, comments, lines, files)


def _comment_lines(source: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(
        token.type == tokenize.COMMENT and token.line.strip().startswith("#") for token in tokens
    )


def lines_of(node: ast.stmt) -> int:
    """Lines of a statement, its decorators left out."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def methods_of(node: ast.ClassDef) -> int:
    """How many methods a class has of its own, properties among them."""
    return sum(isinstance(each, FUNCTIONS) for each in node.body)


def fields_of(node: ast.ClassDef) -> set[str]:
    """Names of the fields of a class."""
    return set(_fields(node))


def _fields(node: ast.ClassDef) -> Iterator[str]:
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield each.target.id
        elif isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__slots__":
            slots = ast.literal_eval(each.value)
            yield from (slots,) if isinstance(slots, str) else slots
    for each in ast.walk(node):
        is_stored = isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
        if is_stored and ast.unparse(each.value) == "self":
            yield each.attr


def main(folder: Path = PACKAGE) -> None:
    """Print the figures."""
    figures = figures_of(folder)
    lengths = sorted(figures.functions.values())
    print(f"files             {len(figures.files)}, longest {max(figures.files.values())} lines")
    print(f"function lines    median {statistics.median(lengths):g}, longest {lengths[-1]}")
    print(f"comment lines     {figures.comments} of {figures.lines}, {figures.comment_share:.1%}")
    longest = sorted(figures.functions.items(), key=lambda item: -item[1])[:5]
    print("longest functions " + ", ".join(f"{name} {length}" for name, length in longest))
    for title, key in (("methods", 0), ("fields", 1)):
        largest = sorted(figures.classes.items(), key=lambda item: -item[1][key])[:8]
        print(f"most {title:<8}     " + ", ".join(f"{name} {n[key]}" for name, n in largest))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
