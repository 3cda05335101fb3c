"""The rules of the benchmark's rooms, held over the source: who may import whom, how files look.

What the rules say stands in the tables. The rules of the package's own house are in
`tests/test_architecture.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.source import (
    Module,
    Source,
    a_file_opens_with_what_lives_there,
    imports_are_absolute,
    is_within,
)

BENCH = Path(__file__).resolve().parents[1]
MAX_FILES_AT_TOP = 12
MAX_LINES = 400

# From the room that knows least to those that know most; a room imports only what is before it.
# Rooms on one line know nothing of each other.
ARROWS = (
    ("results",),
    ("plan",),
    ("load", "stand_ins"),
    ("workers",),
    ("on_serve", "growth"),
    (
        "http",
        "ray_programs",
        "doors",
        "micro",
        "shared_memory",
        "grpc_payloads",
        "two_nodes",
        "fleet",
        "idle_sessions",
    ),
    ("request_streams", "reconnect_storm"),
    ("show",),
    ("fleet_simulation",),
    ("cli", "docs_page"),
    ("__main__",),
    ("tests",),
)

# What measures or draws needs these; who only reads a run, or starts a worker, does without.
ONLY_IN = {
    "ray": (
        "on_serve",
        "http",
        "ray_programs",
        "two_nodes",
        "request_streams",
        "stand_ins",
        "micro",
        "tests",
    ),
    "serve_grpc": (
        "on_serve",
        "ray_programs",
        "stand_ins",
        "growth",
        "fleet",
        "doors",
        "micro",
        "shared_memory",
        "grpc_payloads",
        "fleet_simulation",
        "idle_sessions",
        "reconnect_storm",
        "tests",
    ),
    "grpc": ("load", "on_serve", "stand_ins", "request_streams"),
    "matplotlib": ("show",),
    "tests": ("tests",),
}


SOURCE = Source(BENCH, ARROWS)


def room_of(module: Module) -> str:
    """The room that a file is in."""
    return SOURCE.room_of(module.name)


# ---------------------------------------------------------------- rules: each yields complaints


def arrows_between_rooms_point_one_way(module: Module) -> Iterator[str]:
    yield from SOURCE.wrong_arrows(module, at_top_only=False)


def what_few_rooms_need_is_imported_nowhere_else(module: Module) -> Iterator[str]:
    for i in module.imports:
        for library, rooms in ONLY_IN.items():
            if is_within(i.target, library) and room_of(module) not in rooms:
                yield f"only {', '.join(rooms)} may import {i.target}"


def a_file_is_not_long(module: Module) -> Iterator[str]:
    lines = len(module.source.splitlines())
    if lines > MAX_LINES:
        yield f"{lines} lines are over {MAX_LINES}"


def the_opening_of_a_room_does_nothing(module: Module) -> Iterator[str]:
    if Path(module.path).name == "__init__.py" and len(module.tree.body) != 1:
        yield "more than a docstring"


RULES: tuple[Callable[[Module], Iterator[str]], ...] = (
    arrows_between_rooms_point_one_way,
    what_few_rooms_need_is_imported_nowhere_else,
    imports_are_absolute,
    a_file_opens_with_what_lives_there,
    a_file_is_not_long,
    the_opening_of_a_room_does_nothing,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rooms_keep_their_rules(rule: Callable[[Module], Iterator[str]]) -> None:
    assert [f"{m.path}: {complaint}" for m in SOURCE.modules for complaint in rule(m)] == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (arrows_between_rooms_point_one_way, "plan/x.py", "from bench.load import window"),
        (arrows_between_rooms_point_one_way, "results/x.py", "def f():\n import bench.cli"),
        (what_few_rooms_need_is_imported_nowhere_else, "plan/x.py", "from ray import serve"),
        (what_few_rooms_need_is_imported_nowhere_else, "micro/x.py", "import tests.unit.sessions"),
        (imports_are_absolute, "plan/x.py", "from . import sweeps"),
        (a_file_opens_with_what_lives_there, "x.py", "import os"),
        (a_file_is_not_long, "x.py", "pass\n" * 401),
        (the_opening_of_a_room_does_nothing, "plan/__init__.py", '"""A."""\nimport os'),
    ],
)
def test_a_rule_sees_what_breaks_it(
    rule: Callable[[Module], Iterator[str]], path: str, source: str
) -> None:
    assert len(list(rule(SOURCE.module(path, source)))) == 1


def test_few_files_stand_at_the_top() -> None:
    files = [path.name for path in BENCH.iterdir() if path.is_file()]
    assert len(files) <= MAX_FILES_AT_TOP, sorted(files)


def test_every_room_has_its_arrow_and_its_map() -> None:
    rooms = [room for rooms in ARROWS for room in rooms]
    assert {room_of(module) for module in SOURCE.modules} - {"__init__"} == set(rooms)
    for module in SOURCE.modules:
        room = Path(module.path).parent
        if str(room) in (".", "tests"):
            continue
        listed = (BENCH / room / "__init__.py").read_text()
        name = Path(module.path).stem
        assert name.startswith(("__", "test_")) or name in listed, f"{module.path} is not listed"


def test_modules_import_each_other_in_no_circle() -> None:
    assert SOURCE.circle(SOURCE.modules, at_top_only=False) == ()
