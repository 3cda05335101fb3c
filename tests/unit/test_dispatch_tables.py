"""Reducers that pickles are written with: ours, cloudpickle's, and whatever is registered."""

from __future__ import annotations

import copyreg
import types
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from serve_grpc.serialization import get_serializer

PICKLES = pytest.mark.parametrize("name", ["cloudpickle", "pickle"])


class Plain:
    """Has no reducer of its own."""


def made_again() -> str:
    """What comes of a `Plain` that was reduced."""
    return "made again"


def reduce_plain(_: Any) -> Any:
    return made_again, ()


@PICKLES
def test_a_reducer_that_is_registered_later_is_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serializer = get_serializer(name)
    assert type(serializer.load_response(serializer.dump_response(Plain()))) is Plain
    monkeypatch.setitem(copyreg.dispatch_table, Plain, reduce_plain)
    assert serializer.load_response(serializer.dump_response(Plain())) == "made again"


def test_a_reducer_of_cloudpickles_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    serializer = get_serializer("cloudpickle")
    table = cloudpickle.Pickler.dispatch_table
    monkeypatch.setitem(copyreg.dispatch_table, Plain, lambda _: (list, ()))
    monkeypatch.setitem(table, Plain, reduce_plain)  # as `ray.util.register_serializer` does
    assert serializer.load_response(serializer.dump_response(Plain())) == "made again"


def test_what_only_cloudpickle_takes_is_taken() -> None:
    serializer = get_serializer("cloudpickle")
    value = [types.MappingProxyType({"a": 1}), pytest, np.arange(3), lambda: 5]
    proxy, module, array, function = serializer.load_response(serializer.dump_response(value))
    assert (dict(proxy), module, function()) == ({"a": 1}, pytest, 5)
    assert np.array_equal(array, np.arange(3))
    with pytest.raises(Exception, match="could not serialize"):
        get_serializer("pickle").dump_response(value)
