"""The rules of the house, held over the source: who may import what, and how files look.

What the rules say stands in the tables, how they are held in the functions of `RULES`. A rule that
gets in the way is changed here, in the open, or the code moves to where it belongs.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "serve_grpc"
MAX_LINES = 400
NO_SUCH_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers", "base", "common"}

# ---------------------------------------------------------------- the tables

PURE = (
    "serve_grpc._generated.replica_pb2",
    "serve_grpc.config",
    "serve_grpc.errors",
    "serve_grpc.payload",
    "serve_grpc.protocol",
    "serve_grpc.routing",
    "google.protobuf",
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "itertools",
    "typing",
)

# All that a pure room may import: time, chance, files, threads and loops are passed in.
ALLOWED_IN_ROOM = {
    "payload": PURE,
    "protocol": (*PURE, "hashlib", "hmac"),
    "routing": (*PURE, "random"),  # the type of a source of chance; a rule below holds its use
}

# What only one place may import, and which place that is.
ONLY_IN = {
    "grpc": ("transport/", "_generated/"),
    "grpc_health": ("transport/",),
    "grpc_reflection": ("transport/",),
    "ray.serve._private": ("_serve/",),
    "ray._private": ("_serve/",),
    "ray._raylet": ("_serve/",),
    "ray.experimental": ("_serve/",),
    # What frames say is never pickled: only payloads, and exceptions beside what is told of them.
    "pickle": (
        "pickling.py",
        "serialization.py",
        "arguments.py",
        "_serve/exceptions.py",
        "_serve/references.py",
    ),
    "cloudpickle": (),
    "ray.cloudpickle": ("serialization.py", "_serve/references.py"),
}

# Rooms, from the one that knows least to those that know most; a room imports only what is before
# it. Rooms on one line know nothing of each other.
ARROWS = (
    ("config", "errors", "deadlines", "misfits", "payload", "threads", "_generated"),
    ("foreign", "pickling", "protocol"),
    ("routing",),
    ("transport",),
    ("metrics",),
    ("_serve",),
    ("serialization",),
    ("allow_list",),
    ("caller", "replica"),
    ("handle_options", "response"),
    ("arguments",),
    ("handle",),
    ("deployment", "statistics"),
    ("__init__",),
)

# Imports inside a function, which may close a circle or wait for a reason of their own.
FUNCTION_LEVEL_IMPORTS = {
    ("serve_grpc.deployment", "serve_grpc.replica.endpoint"),  # a deployed function is pickled
    ("serve_grpc._serve.cluster", "ray._raylet"),  # only where RAY_AUTH_MODE asks for a token
}

# ---------------------------------------------------------------- the source


@dataclass(frozen=True)
class Import:
    """One imported name: `from a import b` imports "a.b", which may be a module or not."""

    target: str
    line: int
    is_at_top: bool


@dataclass(frozen=True)
class Module:
    """One file of the package; `place` is its path in there, such as "protocol/wire.py"."""

    place: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def name(self) -> str:
        parts = ("serve_grpc", *Path(self.place).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def room(self) -> str:
        return self.place.split("/")[0].removesuffix(".py")

    @cached_property
    def imports(self) -> tuple[Import, ...]:
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


_ALL = tuple(
    Module(path.relative_to(PACKAGE).as_posix(), path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
)
MODULES = tuple(module for module in _ALL if module.room != "_generated")
NAMES = {module.name for module in _ALL}


def is_within(target: str, prefix: str) -> bool:
    """Whether `target` is `prefix` or something in it."""
    return target == prefix or target.startswith(prefix + ".")


def module_of(target: str) -> str | None:
    """The module of ours that an imported name is or belongs to."""
    return next((n for n in (target, target.rpartition(".")[0]) if n in NAMES), None)


# ---------------------------------------------------------------- rules: each yields complaints


def pure_rooms_import_only_what_is_listed(module: Module) -> Iterator[str]:
    allowed = ALLOWED_IN_ROOM.get(module.room)
    for i in module.imports:
        if allowed is not None and not any(is_within(i.target, name) for name in allowed):
            yield f"line {i.line}: a pure room imports {i.target}"


def routing_uses_chance_only_as_a_type(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree) if module.room == "routing" else ():
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random":
            yield from {f"line {node.lineno}: {node.attr}"} if node.attr != "Random" else ()


def what_belongs_to_one_room_is_imported_nowhere_else(module: Module) -> Iterator[str]:
    for i in module.imports:
        for library, places in ONLY_IN.items():
            if is_within(i.target, library) and not module.place.startswith(places):
                yield f"line {i.line}: only {' and '.join(places)} may import {i.target}"


def only_config_reads_the_environment(module: Module) -> Iterator[str]:
    names = {"environ", "environb", "getenv", "getenvb"}
    used = [(n.attr, n.lineno) for n in ast.walk(module.tree) if isinstance(n, ast.Attribute)]
    used += [(i.target.rpartition(".")[2], i.line) for i in module.imports]
    for name, line in used:
        if name in names and module.place != "config.py":
            yield f"line {line}: {name}"


def arrows_between_rooms_point_one_way(module: Module) -> Iterator[str]:
    level = {room: number for number, rooms in enumerate(ARROWS) for room in rooms}
    for i in module.imports:
        target = module_of(i.target)
        if i.is_at_top and target is not None and target != "serve_grpc":
            room = target.split(".")[1]
            if room != module.room and level[room] >= level[module.room]:
                yield f"line {i.line}: {module.room} imports {i.target}"


def imports_inside_functions_are_listed(module: Module) -> Iterator[str]:
    for i in module.imports:
        target = module_of(i.target) or i.target.rpartition(".")[0]
        if not i.is_at_top and (module.name, target) not in FUNCTION_LEVEL_IMPORTS:
            yield f"line {i.line}: {i.target}"


def imports_are_absolute(module: Module) -> Iterator[str]:
    yield from (f"line {i.line}: {i.target}" for i in module.imports if i.target[0] == ".")


def a_file_opens_with_what_lives_there(module: Module) -> Iterator[str]:
    first_line = (ast.get_docstring(module.tree) or "").split("\n")[0]
    if not first_line.endswith((".", ":")):
        yield "no docstring that begins with a sentence"


def a_file_is_not_long(module: Module) -> Iterator[str]:
    lines = len(module.source.splitlines())
    if lines > MAX_LINES:
        yield f"{lines} lines are over {MAX_LINES}"


def a_name_says_what_is_inside(module: Module) -> Iterator[str]:
    yield from NO_SUCH_NAMES & set(Path(module.place).with_suffix("").parts)


def _offered(module: Module) -> list[str]:
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def all_names_every_public_class_and_function(module: Module) -> Iterator[str]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in module.tree.body:
        if isinstance(node, kinds) and node.name[0] != "_" and node.name not in _offered(module):
            yield f"line {node.lineno}: {node.name} is not in __all__"


RULES: tuple[Callable[[Module], Iterator[str]], ...] = (
    pure_rooms_import_only_what_is_listed,
    routing_uses_chance_only_as_a_type,
    what_belongs_to_one_room_is_imported_nowhere_else,
    only_config_reads_the_environment,
    arrows_between_rooms_point_one_way,
    imports_inside_functions_are_listed,
    imports_are_absolute,
    a_file_opens_with_what_lives_there,
    a_file_is_not_long,
    a_name_says_what_is_inside,
    all_names_every_public_class_and_function,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule: Callable[[Module], Iterator[str]]) -> None:
    assert [f"{m.place}: {complaint}" for m in MODULES for complaint in rule(m)] == []


@pytest.mark.parametrize(
    ("rule", "place", "source"),
    [
        (pure_rooms_import_only_what_is_listed, "protocol/x.py", "import time"),
        (pure_rooms_import_only_what_is_listed, "routing/x.py", "def f():\n import asyncio"),
        (pure_rooms_import_only_what_is_listed, "protocol/x.py", "from serve_grpc import caller"),
        (routing_uses_chance_only_as_a_type, "routing/x.py", "random.choice([1])"),
        (what_belongs_to_one_room_is_imported_nowhere_else, "handle.py", "from grpc import aio"),
        (what_belongs_to_one_room_is_imported_nowhere_else, "x.py", "from ray._raylet import A"),
        (what_belongs_to_one_room_is_imported_nowhere_else, "protocol/x.py", "import pickle"),
        (what_belongs_to_one_room_is_imported_nowhere_else, "x.py", "from ray import cloudpickle"),
        (only_config_reads_the_environment, "handle.py", "import os\nos.getenv('A')"),
        (only_config_reads_the_environment, "handle.py", "from os import environ"),
        (arrows_between_rooms_point_one_way, "caller/x.py", "import serve_grpc.handle"),
        (imports_inside_functions_are_listed, "handle.py", "def f():\n import json"),
        (imports_are_absolute, "caller/x.py", "from . import call"),
        (a_file_opens_with_what_lives_there, "x.py", "import os"),
        (a_file_is_not_long, "x.py", "pass\n" * 401),
        (a_name_says_what_is_inside, "caller/utils.py", ""),
        (all_names_every_public_class_and_function, "x.py", "__all__ = ['a']\nclass B: ..."),
    ],
)
def test_a_rule_sees_what_breaks_it(
    rule: Callable[[Module], Iterator[str]], place: str, source: str
) -> None:
    assert len(list(rule(Module(place, source)))) == 1


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {m.name: {module_of(i.target) for i in m.imports if i.is_at_top} for m in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in graph.get(name, set()) - {None, name}:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert done >= set(graph)
