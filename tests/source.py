"""Python source as the tests of architecture see it: modules, what they import, and their rooms.

Shared by those of the package (`tests/test_architecture.py`) and of the benchmark
(`bench/tests/test_architecture.py`); what their rules say stands there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = [
    "Import",
    "Module",
    "Source",
    "a_file_opens_with_what_lives_there",
    "imports_are_absolute",
    "is_within",
]


def is_within(target: str, prefix: str) -> bool:
    """Whether `target` is `prefix` or something in it."""
    return target == prefix or target.startswith(prefix + ".")


@dataclass(frozen=True)
class Import:
    """One imported name: `from a import b` imports "a.b", which may be a module or not."""

    target: str
    line: int
    is_at_top: bool


@dataclass(frozen=True)
class Module:
    """One file of a package; `path` is its path in there, such as "protocol/wire.py"."""

    package: str
    path: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        """Parsed."""
        return ast.parse(self.source)

    @property
    def name(self) -> str:
        """As it is imported."""
        parts = (self.package, *Path(self.path).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """All of them, wherever they stand."""
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        inside = {
            id(node)
            for function in ast.walk(self.tree)
            if isinstance(function, functions)
            for node in ast.walk(function)
        }
        found = []
        for node in ast.walk(self.tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = "." * node.level + (node.module or "")
                names = [f"{start}.{alias.name}" for alias in node.names]
            found += [Import(name, node.lineno, id(node) not in inside) for name in names]
        return tuple(found)


class Source:
    """A package and its rooms.

    Args:
        folder: Of the package; its name is the package's.
        arrows: Rooms, from the one that knows least to those that know most. A room imports only
            what is before it; rooms on one line know nothing of each other. A room in a room has a
            dotted name; what stands in none of them is a room by itself.

    Attributes:
        modules: Every file.
    """

    def __init__(self, folder: Path, arrows: Sequence[Sequence[str]]) -> None:
        self.package = folder.name
        self._rooms = [room for rooms in arrows for room in rooms]
        self._level = {room: number for number, rooms in enumerate(arrows) for room in rooms}
        self.modules = tuple(
            self.module(path.relative_to(folder).as_posix(), path.read_text())
            for path in sorted(folder.rglob("*.py"))
        )
        self._names = {module.name for module in self.modules}

    def module(self, path: str, source: str) -> Module:
        """A file of the package, on disk or not."""
        return Module(self.package, path, source)

    def module_of(self, target: str) -> str | None:
        """The module of the package that an imported name is or belongs to."""
        names = (target, target.rpartition(".")[0])
        return next((name for name in names if name in self._names), None)

    def room_of(self, module: str) -> str:
        """The innermost room that a module is in."""
        inside = module.removeprefix(f"{self.package}.") if module != self.package else "__init__"
        within = [room for room in self._rooms if is_within(inside, room)]
        return max(within, key=len, default=inside)

    def wrong_arrows(self, module: Module, *, at_top_only: bool) -> Iterator[str]:
        """Imports of rooms that are not before the module's own."""
        own = self.room_of(module.name)
        for i in module.imports:
            target = self.module_of(i.target)
            if target in (None, self.package) or (at_top_only and not i.is_at_top):
                continue
            assert target is not None
            room = self.room_of(target)
            if room != own and self._level[room] >= self._level[own]:
                yield f"line {i.line}: {own} imports {i.target}"

    def circle(self, modules: Sequence[Module], *, at_top_only: bool) -> tuple[str, ...]:
        """Names of modules that import each other in a circle; empty if there is none."""
        graph = {
            m.name: {self.module_of(i.target) for i in m.imports if i.is_at_top or not at_top_only}
            for m in modules
        }
        return _circle(graph)


def _circle(graph: Mapping[str, set[str | None]]) -> tuple[str, ...]:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> tuple[str, ...]:
        if name in path:
            return (*path, name)
        if name not in done:
            for target in graph.get(name, set()) - {None, name}:
                assert target is not None
                if circle := visit(target, (*path, name)):
                    return circle
            done.add(name)
        return ()

    return next((circle for name in graph if (circle := visit(name, ()))), ())


def imports_are_absolute(module: Module) -> Iterator[str]:
    """A rule."""
    yield from (f"line {i.line}: {i.target}" for i in module.imports if i.target[0] == ".")


def a_file_opens_with_what_lives_there(module: Module) -> Iterator[str]:
    """A rule."""
    first_line = (ast.get_docstring(module.tree) or "").split("\n")[0]
    if not first_line.endswith((".", ":")):
        yield "no docstring that begins with a sentence"
