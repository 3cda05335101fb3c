"""The tables of Ray's private names in `serve_grpc._serve`: each name exists in the installed Ray,
and what the package uses is in them.

An instance's attribute counts as existing if a method of its class assigns it.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

import serve_grpc._serve

PACKAGE = Path(serve_grpc.__file__).parent
INSTALLED = tuple(map(int, ray.__version__.split(".")[:2]))
ROW = re.compile(r"^\| (`.+?) \| (.+?) \|(?: (.+?) \|)?$", re.MULTILINE)
SINCE = re.compile(r"since (\d+)\.(\d+)")

MODULES = tuple(
    importlib.import_module(name)
    for name in (
        "ray.util.metrics",  # before `_raylet`, whose classes have the same names
        "ray._private.node",
        "ray._private.serialization",
        "ray._private.worker",
        "ray._raylet",
        "ray.dag.py_obj_scanner",
        "ray.experimental.internal_kv",
        "ray.serve._private.common",
        "ray.serve._private.config",
        "ray.serve._private.constants",
        "ray.serve._private.handle_options",
        "ray.serve._private.logging_utils",
        "ray.serve._private.long_poll",
        "ray.serve._private.replica",
        "ray.serve._private.replica_result",
        "ray.serve._private.request_router",
        "ray.serve._private.request_router.pow_2_router",
        "ray.serve._private.request_router.replica_wrapper",
        "ray.serve._private.router",
        "ray.serve._private.tracing_utils",
        "ray.serve._private.utils",
        "ray.serve.context",
        "ray.serve.deployment",
        "ray.serve.handle",
        "ray.util.tracing.tracing_helper",
    )
)
"""Where a name of the tables is looked for."""

NOT_RAYS = {
    "_asdict",  # of named tuples
    "_fmt",  # of logging, as the two below
    "_open",
    "_style",
    "_get_running_loop",  # of asyncio
}


@dataclass(frozen=True)
class Listed:
    """A name of the tables: "Owner.attribute", or one of a module.

    Attributes:
        since: The first Ray that has it; (0, 0) for all that are supported.
    """

    name: str
    since: tuple[int, int]


def listed() -> Iterator[Listed]:
    """Every name, written out: ".b" continues the owner before it, "a_/b_x" is "a_x" and "b_x"."""
    assert serve_grpc._serve.__doc__ is not None
    for names, *rest in ROW.findall(serve_grpc._serve.__doc__):
        found = SINCE.search(" ".join(rest))
        since = (int(found[1]), int(found[2])) if found else (0, 0)
        owner = ""
        for token in re.findall(r"`([^`]+)`", names):
            if token.startswith("."):
                attribute = token[1:]
            else:
                owner, _, attribute = token.rpartition(".")
                if not owner:
                    owner, attribute = token, ""
            for one in _written_out(attribute):
                yield Listed(f"{owner}.{one}" if one else owner, since)


def _written_out(attribute: str) -> list[str]:
    """ "inc_/dec_x" as "inc_x" and "dec_x"."""
    *others, last = attribute.split("/")
    stem = last.partition("_")[2]
    return [*(other + stem for other in others), last]


def find(name: str) -> Any:
    """What the tables call `name`: of one of MODULES, or such a module itself.

    Raises:
        LookupError: No module has it.
    """
    for module in MODULES:
        if module.__name__.rpartition(".")[2] == name:
            return module
    for module in MODULES:
        if hasattr(module, name):
            return getattr(module, name)
    raise LookupError(name)


def exists(name: str) -> bool:
    """Whether the installed Ray has it."""
    owner_name, _, attribute = name.rpartition(".")
    try:
        owner = find(owner_name or attribute)
    except LookupError:
        return False
    if not owner_name or hasattr(owner, attribute):
        return True
    kind = owner if inspect.isclass(owner) else type(owner)
    return any(attribute in _of_instances(base) for base in kind.__mro__[:-1])


@functools.cache
def _of_instances(kind: type) -> frozenset[str]:
    """Attributes that fields declare or methods assign."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):  # a class that is not written in Python
        return frozenset()
    assigned = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    return frozenset(assigned | set(getattr(kind, "__annotations__", ())))


def test_a_listed_name_exists_in_the_versions_that_are_said_to_have_it() -> None:
    entries = list(listed())
    assert len(entries) > 50
    expected = {entry.name: entry.since <= INSTALLED for entry in entries}
    wrong = [name for name, is_expected in expected.items() if exists(name) != is_expected]
    assert wrong == [], f"in Ray {ray.__version__}"


@pytest.mark.parametrize("name", ["Nobody", "Replica._nobody", "AsyncioRouter.nobody"])
def test_a_name_that_ray_does_not_have_is_noticed(name: str) -> None:
    assert not exists(name)


# ------------------------------------------------------------ what the package uses


def used() -> Iterator[tuple[str, str]]:
    """Private names in the package's code that it does not define, each with its place."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    known = {name for tree in trees.values() for name in _defined(tree)} | NOT_RAYS
    for path, tree in trees.items():
        if path.parent.name == "_generated":
            continue
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Attribute) and re.match("_[a-zA-Z]", node.attr):
                names = [] if node.attr in known else [node.attr]
            elif isinstance(node, ast.ImportFrom) and _is_private(node.module or ""):
                names = [alias.name for alias in node.names]
            yield from ((name, f"{path.relative_to(PACKAGE)}:{node.lineno}") for name in names)


def _defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            yield from ast.literal_eval(node.value)


def _is_private(module: str) -> bool:
    return module.startswith(("ray.serve._private", "ray._", "ray.experimental"))


def test_what_the_package_uses_is_listed() -> None:
    names = {part for entry in listed() for part in entry.name.split(".")}
    assert [f"{name}, {place}" for name, place in used() if name not in names] == []
