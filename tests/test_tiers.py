"""The tiers: each test is run by exactly one target, and nothing gets around `tests/tiers.py`."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import tiers
from tests.ray.compat.behaviours import BY_REFERENCE, OURS, SERVES_GRPC

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (ROOT / "tests", ROOT / "bench" / "tests")
EXECUTION = "tests/ray/compat/test_compat_execution.py"
STARTS_RAY = {"run_script", "own_ray", "start_ray"}
MAY_START_RAY = ("tests/fixtures.py", "tests/ray/driver_scripts/")


def selects(text: str, has: dict[str, bool]) -> bool:
    """Whether the last `-m` in a text selects a test with these markers."""
    expressions: list[str] = re.findall(r"-m ['\"]([^'\"]+)['\"]", text)
    selected: bool = eval(expressions[-1], {}, has)  # such an expression is one of Python, too
    return selected


def recipe(target: str) -> str:
    """The commands of a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert found is not None, target
    return found[1]


def test_every_test_is_run_by_one_target_or_takes_long() -> None:
    configured = (ROOT / "pyproject.toml").read_text()
    names = ("ray", "full", "long", "soak")
    for markers in itertools.product((False, True), repeat=len(names)):
        has = dict(zip(names, markers, strict=True))
        is_quick, is_rest = (selects(recipe(target), has) for target in ("test", "test-all"))
        takes_long = has["long"] or has["soak"]
        assert is_quick == (not has["full"] and not takes_long), has
        assert is_rest == (has["full"] and not takes_long), has
        assert selects(configured, has) == (is_quick or is_rest), has


def imports_of(file: Path) -> set[str]:
    """The names that a file imports from elsewhere."""
    nodes = ast.walk(ast.parse(file.read_text()))
    return {
        alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_who_starts_a_ray_does_it_by_a_fixture() -> None:
    files = [file for room in ROOMS for file in room.rglob("*.py")]
    found = {
        name: STARTS_RAY & imports_of(file)
        for file in files
        if not (name := file.relative_to(ROOT).as_posix()).startswith(MAY_START_RAY)
    }
    # `own_ray` there is how a driver script does it.
    assert {name: names for name, names in found.items() if names} == {
        "tests/ray/scripts.py": {"start_ray"}
    }


RAY = ("ray", "timeout")


def marked(where: str, *fixtures: str, **params: Any) -> set[str]:
    """The markers that a test in that file gets."""
    found: set[str] = set()
    item = SimpleNamespace(
        path=ROOT / where,
        fixturenames=fixtures,
        callspec=SimpleNamespace(params=params),
        add_marker=lambda marker: found.add(marker.name),
        get_closest_marker=lambda name: None,
    )
    tiers.mark(item)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("found", "markers"),
    [
        (marked("tests/unit/test_x.py", "tmp_path"), set()),
        (marked("tests/unit/test_x.py", transport=BY_REFERENCE), set()),
        (marked("tests/faults/test_x.py", "serve_instance"), {*RAY, "full"}),
        (marked("tests/ray/test_x.py"), {*RAY, "full"}),
        (marked("tests/peer/test_x.py"), {*RAY}),
        (marked("tests/ray/test_serve_errors.py"), {*RAY}),
        (marked(EXECUTION, "transport", transport=OURS), {*RAY}),
        (marked(EXECUTION, "transport", transport=BY_REFERENCE), {*RAY, "full", "flaky"}),
        (marked(EXECUTION, "transport", transport=SERVES_GRPC), {*RAY, "full", "flaky"}),
        (marked("tests/security/test_x.py", "run_script"), {*RAY, "full"}),
        (marked("bench/tests/test_x.py"), {"full"}),
    ],
)
def test_markers_follow_from_what_a_test_uses(found: set[str], markers: set[str]) -> None:
    assert found == markers


def test_the_core_on_ray_is_there() -> None:
    assert [path for path in tiers.CORE_ON_RAY if not path.exists()] == []


def test_the_longest_files_are_there() -> None:
    assert [name for name in tiers.LONGEST if not (ROOT / name).exists()] == []


def test_the_longest_begin_and_each_file_stays_together() -> None:
    files = {"tests/unit/test_a.py": 2, "tests/unit/test_b.py": 3, tiers.LONGEST[1]: 1}
    files |= {EXECUTION: 1, "tests/unit/test_c.py": 3, tiers.LONGEST[0]: 1}
    items = [
        SimpleNamespace(nodeid=f"{file}::test_{number}")
        for number in range(3)
        for file, count in files.items()
        if number < count
    ]
    items.sort(key=lambda item: list(files).index(item.nodeid.partition("::")[0]))
    tiers.longest_first(items)  # type: ignore[arg-type]
    found = [name for name, _ in itertools.groupby(i.nodeid.partition("::")[0] for i in items)]
    assert found == [
        EXECUTION,
        *tiers.LONGEST[:2],
        "tests/unit/test_b.py",
        "tests/unit/test_c.py",
        "tests/unit/test_a.py",
    ]


def test_a_test_without_parameters_is_in_no_column() -> None:
    plain = SimpleNamespace(path=ROOT / "tests/unit/test_x.py")
    assert not tiers.is_full(plain)  # type: ignore[arg-type]
    assert not tiers.needs_ray(plain)  # type: ignore[arg-type]


def test_the_tiers_of_this_run_are_as_the_rule_says(request: pytest.FixtureRequest) -> None:
    """The items that were collected beside this one, so most of all in a run of everything."""
    for item in request.session.items:
        if tiers.is_full(item):
            assert item.get_closest_marker("full") is not None, item.nodeid
        if tiers.needs_ray(item):
            assert item.get_closest_marker("ray") is not None, item.nodeid
