"""The rules of the house, held over the source: who may import what, and how files look.

What the rules say stands in the tables, how they are held in the functions of `RULES`. A rule that
gets in the way is changed here, in the open, or the code moves to where it belongs.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house import FUNCTIONS, fields_of, lines_of, methods_of
from tests.source import (
    Module,
    Source,
    a_file_opens_with_what_lives_there,
    imports_are_absolute,
    is_within,
)

PACKAGE = Path(__file__).resolve().parent.parent / "serve_grpc"
NO_SUCH_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers", "base", "common"}

# ---------------------------------------------------------------- the tables

PURE = (
    "serve_grpc._generated.replica_pb2",
    "serve_grpc.config",
    "serve_grpc.errors",
    "serve_grpc.payload",
    "serve_grpc.protocol",
    "serve_grpc.routing",
    "serve_grpc.states",
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
    # Fragments of a large piece are copied to where it will lie.
    "protocol": (*PURE, "hashlib", "hmac", "serve_grpc.shared_memory.blocks"),
    # What it shares are bytes: it knows no value, no frame, no socket and no library for arrays.
    "shared_memory": (
        "serve_grpc.config",
        "serve_grpc.shared_memory",
        "__future__",
        "_thread",
        "asyncio",  # whether this thread runs a loop
        "collections",
        "ctypes",
        "dataclasses",
        "errno",
        "fcntl",
        "functools",
        "itertools",
        "logging",
        "mmap",
        "os",
        "pathlib",
        "stat",
        "sys",
        "threading",
        "time",
        "typing",
        "weakref",
    ),
    "routing": (
        *PURE,
        "bisect",
        "hashlib",
        "random",
    ),  # the type of a source of chance; a rule below holds its use
}

# What only some files may import, and which files those are.
ONLY_IN = {
    "grpc": ("carriers/grpc/", "_generated/"),
    # Pumps, sessions and connections know links only: who dials and who listens knows gRPC's.
    "serve_grpc.carriers.grpc": (
        "carriers/grpc/",
        "caller/dialling.py",
        "replica/",  # the server, and calls through its plain door
        "caller/serve_calls.py",  # errors of Serve's own gRPC transport
        "_serve/ingress_context.py",  # gRPC's enums, in a context of Serve's
    ),
    # As with gRPC's: sessions know links only.
    "serve_grpc.carriers.local": (
        "carriers/local/",
        "caller/dialling.py",
        "replica/",
        "_serve/replica_facts.py",  # how long the path of a socket may be
    ),
    "grpc_health": ("carriers/grpc/",),
    "grpc_reflection": ("carriers/grpc/",),
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
        "_serve/store.py",  # buffers, of which Ray writes an object
    ),
    "cloudpickle": (),
    # Memory that others see, and mappings whose end must be watched, are made in one room.
    "mmap": ("shared_memory/",),
    "fcntl": ("shared_memory/",),
    "ctypes": ("shared_memory/",),
    "ray.cloudpickle": ("serialization.py", "_serve/references.py", "_serve/definitions.py"),
}

# What a room never imports: carriers work without a Ray.
NEVER_IN = {"ray": ("carriers/", "entrance/", "streams/")}

# Rooms, from the one that knows least to those that know most; a room imports only what is before
# it. Rooms on one line know nothing of each other.
ARROWS = (
    ("config", "errors", "deadlines", "misfits", "payload", "threads", "_generated"),
    ("shared_memory",),
    ("debugging", "foreign", "pickling"),
    ("states",),
    ("protocol",),
    ("mailbox", "routing"),
    ("pacing",),
    ("entrance",),
    ("carriers",),
    ("carriers.grpc", "carriers.local"),
    ("metrics",),
    ("_serve",),
    ("serialization", "storing"),
    ("allow_list",),
    ("streams",),
    ("request_stream",),
    ("caller", "replica"),
    ("handle_options", "response"),
    ("arguments", "pinning"),
    ("handle",),
    ("deployment", "statistics"),
    ("__init__",),
)


@dataclass(frozen=True)
class Sizes:
    """The most that a room may have: lines of a file and of a function, and of a class."""

    file: int = 400
    function: int = 45
    methods: int = 22
    fields: int = 20


# Of rooms that need more, or can do with less.
SIZES = {
    "_serve": Sizes(function=54),  # one keyword for each field of Serve's records
    "caller": Sizes(methods=34),
    "carriers": Sizes(file=250, function=40, methods=15, fields=13),
    "carriers.grpc": Sizes(file=250, methods=15, fields=10),
    "carriers.local": Sizes(file=250, function=40, methods=15, fields=14),
    "config": Sizes(function=48),  # one keyword for each setting
    "entrance": Sizes(file=150, function=25, methods=10, fields=10),
    "handle": Sizes(function=75),  # `options` has one keyword for each option of Serve
    "protocol": Sizes(function=42, fields=15),
    "replica": Sizes(file=300, function=50, fields=26),  # what a request says, in an `Invocation`
    # What is published of a replica, in `ReplicaFacts`.
    "routing": Sizes(file=210, function=20, methods=13, fields=12),
    "shared_memory": Sizes(file=370, function=40, methods=16, fields=16),
    "streams": Sizes(file=180, function=20, methods=16, fields=10),
}

# Imports inside a function, which may close a circle or wait for a reason of their own.
FUNCTION_LEVEL_IMPORTS = {
    ("serve_grpc.deployment", "serve_grpc.replica.endpoint"),  # a deployed function is pickled
    ("serve_grpc._serve.cluster", "ray._raylet"),  # only where RAY_AUTH_MODE asks for a token
}

# ---------------------------------------------------------------- the source

SOURCE = Source(PACKAGE, ARROWS)
MODULES = tuple(m for m in SOURCE.modules if SOURCE.room_of(m.name) != "_generated")


def room_of(module: Module) -> str:
    """The room that a file is in."""
    return SOURCE.room_of(module.name)


# ---------------------------------------------------------------- rules: each yields warning


def pure_rooms_import_only_what_is_listed(module: Module) -> Iterator[str]:
    allowed = ALLOWED_IN_ROOM.get(room_of(module))
    for i in module.imports:
        if allowed is not None and not any(is_within(i.target, name) for name in allowed):
            yield f"line {i.line}: a pure room imports {i.target}"


def routing_uses_chance_only_as_a_type(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree) if room_of(module) == "routing" else ():
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random":
            yield from {f"line {node.lineno}: {node.attr}"} if node.attr != "Random" else ()


def what_belongs_to_one_room_is_imported_nowhere_else(module: Module) -> Iterator[str]:
    for i in module.imports:
        for library, paths in ONLY_IN.items():
            if is_within(i.target, library) and not module.path.startswith(paths):
                yield f"line {i.line}: only {' and '.join(paths)} may import {i.target}"


def some_rooms_know_nothing_of_ray(module: Module) -> Iterator[str]:
    for i in module.imports:
        for library, paths in NEVER_IN.items():
            if is_within(i.target, library) and module.path.startswith(paths):
                yield f"line {i.line}: {i.target}"


def only_config_reads_the_environment(module: Module) -> Iterator[str]:
    names = {"environ", "environb", "getenv", "getenvb"}
    used = [(n.attr, n.lineno) for n in ast.walk(module.tree) if isinstance(n, ast.Attribute)]
    used += [(i.target.rpartition(".")[2], i.line) for i in module.imports]
    for name, line in used:
        if name in names and module.path != "config.py":
            yield f"line {line}: {name}"


def arrows_between_rooms_point_one_way(module: Module) -> Iterator[str]:
    yield from SOURCE.wrong_arrows(module, at_top_only=True)


def imports_inside_functions_are_listed(module: Module) -> Iterator[str]:
    for i in module.imports:
        target = SOURCE.module_of(i.target) or i.target.rpartition(".")[0]
        if not i.is_at_top and (module.name, target) not in FUNCTION_LEVEL_IMPORTS:
            yield f"line {i.line}: {i.target}"


def nothing_is_larger_than_its_room_allows(module: Module) -> Iterator[str]:
    allowed = SIZES.get(room_of(module), Sizes())
    lines = len(module.source.splitlines())
    if lines > allowed.file:
        yield f"{lines} lines are over {allowed.file}"
    for node in ast.walk(module.tree):
        if isinstance(node, FUNCTIONS) and lines_of(node) > allowed.function:
            yield f"{node.name}: {lines_of(node)} lines are over {allowed.function}"
        elif isinstance(node, ast.ClassDef):
            methods, fields = methods_of(node), len(fields_of(node))
            if methods > allowed.methods:
                yield f"{node.name}: {methods} methods are over {allowed.methods}"
            if fields > allowed.fields:
                yield f"{node.name}: {fields} fields are over {allowed.fields}"


def a_name_says_what_is_inside(module: Module) -> Iterator[str]:
    yield from NO_SUCH_NAMES & set(Path(module.path).with_suffix("").parts)


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
    some_rooms_know_nothing_of_ray,
    only_config_reads_the_environment,
    arrows_between_rooms_point_one_way,
    imports_inside_functions_are_listed,
    imports_are_absolute,
    a_file_opens_with_what_lives_there,
    nothing_is_larger_than_its_room_allows,
    a_name_says_what_is_inside,
    all_names_every_public_class_and_function,
)


def class_with(member: str) -> str:
    """A class with eleven of them; "#" stands for the number of each."""
    return "class A:\n" + "".join(f" {member.replace('#', str(n))}\n" for n in range(11))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule: Callable[[Module], Iterator[str]]) -> None:
    assert [f"{m.path}: {complaint}" for m in MODULES for complaint in rule(m)] == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (pure_rooms_import_only_what_is_listed, "protocol/x.py", "import time"),
        (pure_rooms_import_only_what_is_listed, "routing/x.py", "def f():\n import asyncio"),
        (pure_rooms_import_only_what_is_listed, "protocol/x.py", "from serve_grpc import caller"),
        (pure_rooms_import_only_what_is_listed, "shared_memory/x.py", "import numpy"),
        (pure_rooms_import_only_what_is_listed, "shared_memory/x.py", "import socket"),
        (what_belongs_to_one_room_is_imported_nowhere_else, "carriers/x.py", "import mmap"),
        (routing_uses_chance_only_as_a_type, "routing/x.py", "random.choice([1])"),
        (what_belongs_to_one_room_is_imported_nowhere_else, "handle.py", "from grpc import aio"),
        (what_belongs_to_one_room_is_imported_nowhere_else, "x.py", "from ray._raylet import A"),
        (
            what_belongs_to_one_room_is_imported_nowhere_else,
            "carriers/pump.py",
            "from serve_grpc.carriers.grpc import dial",
        ),
        (
            what_belongs_to_one_room_is_imported_nowhere_else,
            "carriers/host.py",
            "from serve_grpc.carriers.local import serve",
        ),
        (what_belongs_to_one_room_is_imported_nowhere_else, "carriers/local/x.py", "import grpc"),
        (some_rooms_know_nothing_of_ray, "carriers/local/x.py", "import ray"),
        (what_belongs_to_one_room_is_imported_nowhere_else, "protocol/x.py", "import pickle"),
        (what_belongs_to_one_room_is_imported_nowhere_else, "x.py", "from ray import cloudpickle"),
        (only_config_reads_the_environment, "handle.py", "import os\nos.getenv('A')"),
        (only_config_reads_the_environment, "handle.py", "from os import environ"),
        (arrows_between_rooms_point_one_way, "caller/x.py", "import serve_grpc.handle"),
        (imports_inside_functions_are_listed, "handle.py", "def f():\n import json"),
        (imports_are_absolute, "caller/x.py", "from . import call"),
        (a_file_opens_with_what_lives_there, "x.py", "import os"),
        (nothing_is_larger_than_its_room_allows, "x.py", "pass\n" * 401),
        (nothing_is_larger_than_its_room_allows, "streams/x.py", "def f():\n" + " pass\n" * 20),
        (nothing_is_larger_than_its_room_allows, "entrance/x.py", class_with("def f#(self): ...")),
        (nothing_is_larger_than_its_room_allows, "entrance/x.py", class_with("f#: int")),
        (a_name_says_what_is_inside, "caller/utils.py", ""),
        (all_names_every_public_class_and_function, "x.py", "__all__ = ['a']\nclass B: ..."),
    ],
)
def test_a_rule_sees_what_breaks_it(
    rule: Callable[[Module], Iterator[str]], path: str, source: str
) -> None:
    assert len(list(rule(SOURCE.module(path, source)))) == 1


def test_modules_import_each_other_in_no_circle() -> None:
    assert SOURCE.circle(MODULES, at_top_only=True) == ()
