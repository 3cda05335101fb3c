"""Which tests to look at for a module: docs/internals-tests.md is written from here.

    python -m tests.modules

Most of it follows from imports: the tests of a module are those that import it. `THROUGH` names the
tests of modules that are only reached through another one. tests/test_modules.py holds that each
module has a test, that the page is up to date, and that no entry is stale.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

__all__ = ["MODULES", "PAGE", "THROUGH", "imported_by", "needs_ray", "rendered"]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "internals-tests.md"

THROUGH: dict[str, tuple[str, ...]] = {
    "_serve/references.py": (
        "tests/unit/test_pickling.py",
        "tests/unit/test_arguments.py",
        "tests/unit/test_dispatch_tables.py",
    ),
    "_serve/routers.py": ("tests/unit/test_router_adapter.py",),
    "caller/bound.py": ("tests/unit/test_bound.py", "tests/behaviour/test_one_replica.py"),
    "caller/choosing.py": ("tests/unit/test_delivery.py",),
    "caller/events.py": ("tests/unit/test_handing_out.py",),
    "caller/input_way.py": ("tests/unit/test_inputs.py", "tests/unit/test_inputs_ends.py"),
    "caller/line.py": ("tests/property/test_router.py",),
    "caller/raising.py": ("tests/unit/test_call.py", "tests/unit/test_user_exceptions.py"),
    "caller/refusal.py": ("tests/unit/test_oversize.py", "tests/unit/test_delivery.py"),
    "carriers/caller_pump.py": ("tests/unit/test_pumps.py",),
    "carriers/grpc/enums.py": ("tests/unit/test_call_context.py",),
    "carriers/grpc/interceptors.py": ("tests/behaviour/test_observed.py",),
    "carriers/grpc/plain_door.py": ("tests/behaviour/test_observed.py",),
    "carriers/local/borrowing.py": ("tests/unit/test_local_memory.py",),
    "carriers/local/descriptors.py": ("tests/unit/test_local_memory.py",),
    "carriers/local/forks.py": ("tests/unit/test_local_link.py",),
    "deployment.py": ("tests/unit/test_opt_in.py", "tests/unit/test_allow_list.py"),
    "entrance/signed_calls.py": (
        "tests/behaviour/test_connection.py",
        "tests/behaviour/test_observed.py",
    ),
    "foreign.py": ("tests/unit/test_user_exceptions.py", "tests/unit/test_handing_out.py"),
    "protocol/caller_handshake.py": ("tests/unit/test_session_handshake.py",),
    "protocol/received.py": ("tests/unit/test_caller_session.py",),
    "protocol/sent_replies.py": ("tests/unit/test_replica_session.py",),
    "protocol/sent_requests.py": ("tests/unit/test_caller_session.py",),
    "protocol/templates.py": ("tests/unit/test_replica_session.py",),
    "replica/admission.py": ("tests/unit/test_dispatcher.py",),
    "replica/debug_lines.py": ("tests/unit/test_dispatcher.py",),
    "replica/failures.py": ("tests/unit/test_failures.py", "tests/unit/test_one_outcome.py"),
    "replica/making.py": ("tests/unit/test_dispatcher.py",),
    "replica/thread_call.py": ("tests/unit/test_thread_calls.py",),
    "shared_memory/borrowed.py": (
        "tests/unit/test_lent.py",
        "tests/unit/test_passing_on.py",
        "tests/unit/test_untouched.py",
    ),
    "streams/waiters.py": ("tests/unit/test_inbox.py", "tests/unit/test_call_waiters.py"),
}
"""Modules that no test imports, and tests without Ray that run their code all the same."""

SHOWN = 5
"""Tests of a module that a cell of the page names."""

ON_RAY = ("tests/ray/", "tests/faults/")

INTRODUCTION = """\
# Which tests to look at

For each module, the tests that import it or are known to run its code. Written by
`python -m tests.modules`; do not edit it. *Without Ray* takes seconds. What the modules are for:
[internals](internals.md).

| module | tests without Ray | tests on a real Ray Serve |
| --- | --- | --- |
"""


def _code_of(path: Path) -> list[ast.stmt]:
    """What stands in a file besides its docstring and its list of names."""
    return [
        statement
        for statement in ast.parse(path.read_text()).body
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
    ]


def _modules() -> dict[str, str]:
    package = ROOT / "serve_grpc"
    files = (path for path in sorted(package.rglob("*.py")) if "_generated" not in path.parts)
    return {
        path.relative_to(package).as_posix(): ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in files
        if path.name != "__init__.py" and _code_of(path)
    }


MODULES = _modules()
"""File below serve_grpc/, and the module's name."""


@cache
def _names_imported_in(file: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def needs_ray(test: str) -> bool:
    """Whether the whole file needs a real Ray Serve."""
    text = (ROOT / test).read_text()
    return test.startswith(ON_RAY) or any(
        line.startswith("pytestmark") and "mark.ray" in line for line in text.splitlines()
    )


@cache
def imported_by(module: str) -> tuple[str, ...]:
    """The test files that import a module; paths from the repository's root."""
    name = MODULES[module]
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return tuple(
        file.relative_to(ROOT).as_posix() for file in files if name in _names_imported_in(file)
    )


def rendered() -> str:
    """The page."""
    lines = []
    for module in MODULES:
        tests = [*THROUGH.get(module, ()), *imported_by(module)]
        tests.sort(
            key=lambda test: Path(module).stem not in test
        )  # those named after it come first
        quick = [_link(test) for test in tests if not needs_ray(test)]
        on_ray = [_link(test) for test in tests if needs_ray(test)]
        lines.append(f"| `{module}` | {_cell(quick)} | {_cell(on_ray)} |\n")
    return INTRODUCTION + "".join(lines)


def _cell(links: list[str]) -> str:
    return ", ".join(links[:SHOWN]) + (" and more" if len(links) > SHOWN else "")


def _link(test: str) -> str:
    path = Path(test)
    return f"[{path.parent.name}/{path.stem.removeprefix('test_')}](../{test})"


if __name__ == "__main__":
    PAGE.write_text(rendered())
