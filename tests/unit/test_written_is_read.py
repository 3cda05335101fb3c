"""Whatever msgpack and orjson write can be read; what could not is refused where it is written."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given

from serve_grpc.errors import SerializationError
from serve_grpc.payload import LARGE_BYTES, Segments, joined
from serve_grpc.serialization import get_serializer

# Levels of a result; an argument stands two levels deep, in `(args, kwargs)`.
LEVELS = {"msgpack": 1024, "orjson": 254}
SHAPES = {
    "lists": (list, lambda inner: [inner]),
    "maps": (dict, lambda inner: {"a": inner}),
    "an atom in lists": (lambda: [1], lambda inner: [inner]),
}


def nested(shape: str, levels: int) -> Any:
    innermost, around = SHAPES[shape]
    value = innermost()
    for _ in range(levels - 1):
        value = around(value)
    return value


def depth(value: Any) -> int:
    levels = 0
    while isinstance(value, (list, dict)):
        levels += 1
        value = next(iter(value.values() if isinstance(value, dict) else value), None)
    return levels


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_deepest_value_that_is_written_is_read(name: str, shape: str) -> None:
    serializer, levels = get_serializer(name), LEVELS[name]
    result = nested(shape, levels)
    assert depth(serializer.load_response(serializer.dump_response(result))) == levels
    argument = nested(shape, levels - 2)
    request = serializer.dump_request((argument,), {"k": argument})
    (positional,), keywords = serializer.load_request(request)
    assert depth(positional) == depth(keywords["k"]) == levels - 2


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_value_that_is_a_level_deeper_is_refused_where_it_is_written(
    name: str, shape: str
) -> None:
    # Older versions of orjson do not count an innermost list that is empty.
    more = 2 if (name, shape) == ("orjson", "lists") else 1
    serializer, levels = get_serializer(name), LEVELS[name] + more
    with pytest.raises(SerializationError, match="nested too deep") as raised:
        serializer.dump_response(nested(shape, levels))
    assert raised.value.direction == "response"
    for args, kwargs in (
        ((nested(shape, levels - 2),), {}),
        ((), {"k": nested(shape, levels - 2)}),
    ):
        with pytest.raises(SerializationError) as raised:
            serializer.dump_request(args, kwargs)
        assert raised.value.direction == "request"


def test_tuples_in_keys_are_tuples_again() -> None:
    value = {(1, 2): "a", ((1, "x"), ()): {(b"y",): [(1, 2)]}, "plain": {1: 2}}
    serializer = get_serializer("msgpack")
    read = serializer.load_response(serializer.dump_response(value))
    assert read == {(1, 2): "a", ((1, "x"), ()): {(b"y",): [[1, 2]]}, "plain": {1: 2}}
    assert serializer.load_request(serializer.dump_request((value,), {"k": value})) == (
        (read,),
        {"k": read},
    )


def test_tuples_in_keys_are_as_deep_as_other_values() -> None:
    serializer = get_serializer("msgpack")
    value: dict[Any, int] = {nested_key(1000): 1}
    (read,) = serializer.load_response(serializer.dump_response(value))
    depth = 0
    while read:
        assert type(read) is tuple
        depth, (read,) = depth + 1, read
    assert depth == 1000


def nested_key(levels: int) -> Any:
    key: Any = ()
    for _ in range(levels):
        key = (key,)
    return key


@pytest.mark.parametrize("size", [LARGE_BYTES - 100, LARGE_BYTES + 100, 10 * LARGE_BYTES])
def test_large_values_are_written_as_msgpack_writes_them(size: int) -> None:
    value = {"k": [b"x" * size]}
    payload = get_serializer("msgpack").dump_response(value)
    assert isinstance(payload, Segments) == (size > LARGE_BYTES)
    assert joined(payload) == msgpack.packb(value)
    assert get_serializer("msgpack").load_response(payload) == value


atoms = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(max_size=3)
    | st.just("\ud800")
    | st.binary(max_size=3)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=3))
    | st.builds(msgpack.Timestamp, st.integers(-(2**70), 2**70), st.integers(0, 10**9 - 1))
)
keys = st.recursive(atoms, lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=2))
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=3)
    ),
)


def alike(one: Any, other: Any) -> bool:
    """Whether they are equal but for what docs/options.md says that these serializers change."""
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(alike, one.values(), other.values()))
    if isinstance(one, float) and not math.isfinite(one):
        return other is None or repr(other) == repr(one)
    return bool(one == other)


@given(value=values)
@pytest.mark.parametrize("name", LEVELS)
def test_any_value_is_read_as_it_was_written_or_refused(name: str, value: Any) -> None:
    serializer = get_serializer(name)
    try:
        payload = serializer.dump_request((value,), {})
    except SerializationError:
        return
    ((read,), _) = serializer.load_request(payload)
    assert alike(value, read)
