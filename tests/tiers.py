"""Which tier a test is in; the one place that decides it.

`make test` runs what shows a break in our code; `make test-all` runs the tests marked `full`:

- what needs a Ray, but for the files of `CORE_ON_RAY`: a Ray takes most of a suite's time;
- another column of the compatibility table than serve_grpc's: that tests Ray Serve itself;
- a driver script (the fixture `run_script`): it needs a process, and mostly a Ray, of its own;
- the tests in bench/tests: they test the benchmark, not the package;
- what says `@pytest.mark.full` because it takes long, with the reason beside it.

All but the last are found here, from what a test uses, so nobody has to think of them. The tests
marked `long` or `soak` are in neither tier. `make test` and `make test-all` run each test once.

A test of Serve's own transports has a second try, for Ray now and then leaves a call unanswered. A
test of ours has none, but in `.ci/run`: one lost race of a test on two cores must not hide what the
other thousands found, and the run names each test that needed it.

Both run in several processes (pytest-xdist). A file stays in one of them, for its tests share what
they deploy. Of the quick tier's three processes one has all that needs a Ray, so that one Ray is
started, and nothing else; the other two share the rest. The longest come first, so that all end at
about one time.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.ray.compat.behaviours import BY_REFERENCE, SERVES_GRPC

__all__ = ["CORE_ON_RAY", "is_full", "mark", "needs_ray"]

TESTS = Path(__file__).resolve().parent
RAY_ROOMS = (TESTS / "ray", TESTS / "peer")
OF_THE_BENCHMARK = TESTS.parent / "bench" / "tests"
CORE_ON_RAY = (
    TESTS / "peer",
    TESTS / "ray" / "compat" / "test_compat_composition.py",
    TESTS / "ray" / "compat" / "test_compat_execution.py",
    TESTS / "ray" / "compat" / "test_compat_waiting.py",
    TESTS / "ray" / "test_serve_accounting.py",
    TESTS / "ray" / "test_serve_composition.py",
    TESTS / "ray" / "test_serve_errors.py",
    TESTS / "ray" / "test_serve_giving_up.py",
    TESTS / "ray" / "test_serve_queue_limit.py",
    TESTS / "ray" / "test_serve_slots.py",
)
"""What shows on a real Ray Serve that calls, streams, errors, deadlines, cancels and slots work."""
CORE = "core on ray"
"""The name of that piece of work; all others have their file's."""
LONGEST = (
    "tests/security/test_floods.py",
    "tests/ray/test_serve_oversize.py",
    "tests/ray/test_serve_large_values.py",
    "tests/ray/compat/test_compat_proxies.py",
    "tests/ray/compat/test_compat_locality.py",
    "tests/security/test_secret.py",
    "tests/ray/test_serve_driver_ends.py",
    "tests/ray/test_serve_rolling_update.py",
    "tests/ray/compat/test_compat_operations.py",
    "tests/ray/compat/test_compat_differences.py",
    "tests/ray/compat/test_compat_ingress.py",
)
"""Files that take minutes, the longest first; of the others, the number of tests tells."""
SHARED_RAY = "serve_instance"
DRIVER_SCRIPT = "run_script"
COLUMN = "transport"
RAY_TIMEOUT_S = 300
"""Of a test that needs a Ray: it waits for processes that start, which takes long on a busy one."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        mark(item)
    if hasattr(config, "workerinput"):  # one of several processes
        longest_first(items)


def longest_first(items: list[pytest.Item]) -> None:
    """Sort them as pieces of work: the core on Ray, which is one, `LONGEST`, then by size."""
    sizes = Counter(piece_of(item.nodeid) for item in items)
    order = {piece: place for place, piece in enumerate((CORE, *LONGEST))}

    def place(item: pytest.Item) -> tuple[int, int]:
        piece = piece_of(item.nodeid)
        return order.get(piece, len(order)), -sizes[piece]

    items.sort(key=place)


def piece_of(nodeid: str) -> str:
    """The piece of work that a test is in: its file, or the core on Ray."""
    file = nodeid.partition("::")[0]
    return CORE if _is_within(TESTS.parent / file, CORE_ON_RAY) else file


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """A file is one piece of work, and so are all files of `CORE_ON_RAY` together."""

    def _split_scope(self, nodeid: str) -> str:
        return piece_of(nodeid)

    def _reschedule(self, node: Any) -> None:
        # Of three processes, that of the core has nothing else to do: threads and sessions of its
        # Ray are in it, and other tests look for what is left of sockets and descriptors.
        if CORE not in self.assigned_work[node] or len(self.nodes) < 3:
            super()._reschedule(node)
        elif not node.shutting_down:
            node.shutdown()  # when it is through with it


@pytest.hookimpl(optionalhook=True)  # xdist's, which may be absent
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # `longest_first` has done it
    # Not by xdist's marker for groups: xdist 3.8 ignores it with pytest 9.2 (pytest-xdist #1386).
    return _Scheduling(config, log)


def mark(item: pytest.Item) -> None:
    """Add what follows from what the test uses: `ray` and its `timeout`, `full`, a second try."""
    if needs_ray(item):
        item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(RAY_TIMEOUT_S))
    if is_full(item):
        item.add_marker(pytest.mark.full)
    if tests_serve_itself(item):
        item.add_marker(pytest.mark.flaky(reruns=1))


def needs_ray(item: pytest.Item) -> bool:
    """Whether it is in a room of such tests, or uses the shared Ray or a driver script."""
    return not _fixtures(item).isdisjoint({SHARED_RAY, DRIVER_SCRIPT}) or any(
        room in item.path.parents for room in RAY_ROOMS
    )


def is_full(item: pytest.Item) -> bool:
    """Whether the rule puts it into `make test-all`."""
    return (
        (needs_ray(item) and not _is_within(item.path, CORE_ON_RAY))
        or tests_serve_itself(item)
        or DRIVER_SCRIPT in _fixtures(item)
        or OF_THE_BENCHMARK in item.path.parents
    )


def tests_serve_itself(item: pytest.Item) -> bool:
    """Whether it is one of the compatibility table's columns that are not serve_grpc's."""
    run = getattr(item, "callspec", None)
    is_on_ray = TESTS / "ray" in item.path.parents  # a word for a transport is not yet a column
    return is_on_ray and run is not None and run.params.get(COLUMN) in (BY_REFERENCE, SERVES_GRPC)


def _is_within(file: Path, places: tuple[Path, ...]) -> bool:
    return any(place in (file, *file.parents) for place in places)


def _fixtures(item: pytest.Item) -> set[str]:
    """All that it uses, those that its fixtures use included."""
    return set(getattr(item, "fixturenames", ()))
