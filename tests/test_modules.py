"""Every module has a test that needs no Ray, and the page that names its tests is up to date."""

from __future__ import annotations

import pytest

from tests import modules
from tests.modules import MODULES, THROUGH, imported_by, needs_ray


def test_the_page_is_what_the_tests_say() -> None:
    assert modules.PAGE.read_text() == modules.rendered(), "run `python -m tests.modules`"


@pytest.mark.parametrize("module", MODULES)
def test_each_module_has_a_test_short_of_a_live_ray(module: str) -> None:
    by_import = any(not needs_ray(test) for test in imported_by(module))
    assert by_import + (module in THROUGH) == 1, (
        "a test without Ray imports it, or `THROUGH` names tests; one of the two"
    )


@pytest.mark.parametrize("module", THROUGH)
def test_what_is_written_by_hand_is_of_today(module: str) -> None:
    assert module in MODULES
    for test in THROUGH[module]:
        assert (modules.ROOT / test).exists()
        assert not needs_ray(test)
