"""Ray's own tracing: its context reaches the handler from every kind of caller."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.ray.compat.behaviours import BY_REFERENCE, OURS


@pytest.fixture(scope="module")
def found(run_script: Callable[..., str]) -> Any:
    """By transport and caller, what the handler found."""
    return json.loads(run_script("ray_traced", env={}))


def trace_of(context: dict[str, str]) -> str:
    return context["traceparent"].split("-")[1]


@pytest.mark.parametrize("transport", [BY_REFERENCE, OURS])
@pytest.mark.parametrize("caller", ["driver", "thread", "task", "actor"])
def test_a_handler_finds_the_trace_of_its_caller(found, transport, caller):
    assert int(trace_of(found[transport][caller]), 16)


@pytest.mark.parametrize("caller", ["replica", "replica's thread"])
def test_a_call_that_a_handler_makes_joins_its_trace(found, caller):
    outer, inner = found[OURS][caller]
    assert trace_of(outer) == trace_of(inner)
    assert outer["traceparent"] != inner["traceparent"]


@pytest.mark.parametrize("transport", [BY_REFERENCE, OURS])
def test_calls_that_have_nothing_in_common_have_traces_of_their_own(found, transport):
    contexts = [found[transport][caller] for caller in ("driver", "thread", "task", "actor")]
    assert len({trace_of(context) for context in contexts}) == 4
