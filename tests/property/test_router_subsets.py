"""Routers that choose from subsets, against a fleet that does everything a fleet may do.

As in test_router.py: each call settles, once, truthfully. Here replicas come into subsets and leave
them all the time, and calls are bound to replicas outside.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_grpc.caller import held as held_module
from serve_grpc.caller import replicas as replicas_module
from serve_grpc.config import Settings
from tests.property.test_router import Weather, _no_grpc_no_ray, live

__all__ = ["_no_grpc_no_ray"]  # the fixture, for this module too

WEATHERS = st.builds(
    Weather,
    replicas=st.integers(3, 12),
    max_ongoing=st.integers(1, 3),
    callers=st.integers(1, 3),
    calls=st.integers(1, 40),
    delay_s=st.sampled_from([0.0, 0.001, 0.05]),
    work_s=st.sampled_from([0.0, 0.05, 0.5]),
    losses=st.sampled_from([0.0, 1.0, 10.0]),
    changes=st.sampled_from([0.0, 0.5, 3.0]),
    bound=st.sampled_from([0.0, 0.3, 1.0]),
    looks_quick=st.booleans(),
)


@pytest.fixture(scope="module", autouse=True)
def _small_subsets_that_shrink_soon() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas_module, "settings", Settings(subset_size=2))
        patch.setattr(held_module, "LOOK_S", 0.3)
        yield


@settings(max_examples=40)
@given(weather=WEATHERS, seed=st.integers(0, 2**32))
def test_in_any_weather_each_call_settles_once_and_nothing_is_left(
    weather: Weather, seed: int
) -> None:
    live(weather, seed)


def test_subsets_are_in_effect() -> None:
    world = live(Weather(replicas=12, changes=0, losses=0, bound=0, calls=4), 1)
    for router, _ in world.callers:
        assert len(router.line.replicas) == 12
        assert len(router.line.replicas.held) < 12
