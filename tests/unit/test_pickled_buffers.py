"""Pickles with their large buffers behind them: written into memory, read where they arrived."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_grpc.arguments import Pickled
from serve_grpc.payload import LARGE_BYTES, Payload, Segments, joined, pieces
from serve_grpc.pickling import copied_bytes, load, plain_pickle
from serve_grpc.serialization import get_serializer
from tests.fakes.memory import HeapMemory
from tests.unit.shared_memory_ends import Ends, needs_memfd

PICKLES = pytest.mark.parametrize("name", ["cloudpickle", "pickle"])
SIZE = LARGE_BYTES // 8 + 7


@dataclass
class Holder:
    """Arrays in an object of the user's own."""

    arrays: dict[str, np.ndarray]


def array(seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).random(size)


def read_only() -> np.ndarray:
    made = array()
    made.flags.writeable = False
    return made


VALUES: dict[str, Any] = {
    "array": array(),
    "several": [array(1), "between", array(2), np.arange(10)],
    "nested": {"a": {"b": [array(3)]}, "small": np.zeros(3)},
    "object": Holder({"x": array(4)}),
    "fortran": np.asfortranarray(array(size=SIZE * 2).reshape(2, -1)),
    "not contiguous": array(size=SIZE * 3)[::3],
    "empty": np.empty((0, 5)),
    "structured": np.zeros(SIZE, dtype=[("a", "i4"), ("b", "f8")]),
    "row of small ones": [array(seed, 300 + seed) for seed in range(60)],
    "small and large ones": [
        *[array(seed, 3_000) for seed in range(9)],
        array(1),
        *[array(seed, 3_000) for seed in range(9)],
        np.empty(0),
        array(2, 5),
        array(3),
        array(4, 5),
    ],
    "objects": np.array([{"k": 1}, None, "x"], dtype=object),
    "read-only": read_only(),
    "bytes": b"x" * (2 * LARGE_BYTES),
    "bytearray": bytearray(b"y" * (2 * LARGE_BYTES)),
    "text": "z" * (2 * LARGE_BYTES),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        is_fortran = a.ndim > 1 and a.flags.f_contiguous
        return (
            a.dtype == b.dtype
            and is_fortran == (b.ndim > 1 and b.flags.f_contiguous)
            and bool(np.array_equal(a, b))
        )
    if isinstance(a, Holder):
        return same(a.arrays, b.arrays)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def as_arrived(payload: Payload) -> Payload:
    """Each piece as a link with shared memory brings it, writable."""
    return Segments([memoryview(bytearray(piece)) for piece in pieces(payload)])


@PICKLES
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("room", [2**62, LARGE_BYTES + 100, 0], ids=["room", "some", "none"])
def test_a_value_arrives_the_same_with_any_room(name: str, kind: str, room: int) -> None:
    serializer = get_serializer(name)
    payload = serializer.dump_response(VALUES[kind], HeapMemory(room))
    for arrived in (payload, as_arrived(payload), joined(payload), plain_pickle(payload)):
        assert same(serializer.load_response(arrived), VALUES[kind])
    assert same(pickle.loads(plain_pickle(payload)), VALUES[kind])


@PICKLES
def test_large_buffers_lie_where_they_arrived_and_may_be_written(name: str) -> None:
    serializer, memory = get_serializer(name), HeapMemory()
    payload = serializer.dump_response(VALUES["several"], memory)
    assert [len(kept) for kept in memory.kept] == [8 * SIZE, 8 * SIZE]
    parts = [memoryview(bytearray(piece)) for piece in pieces(payload)]
    first, _, second, small = serializer.load_response(Segments(parts))
    for arrived, part in ((first, parts[-2]), (second, parts[-1])):
        assert arrived.flags.writeable
        arrived[0] = 42.0
        assert np.frombuffer(part)[0] == 42.0
    assert small.flags.writeable


@PICKLES
def test_buffers_that_arrive_in_the_stream_may_be_written(name: str) -> None:
    serializer = get_serializer(name)
    payload = joined(serializer.dump_response(array(), HeapMemory()))
    arrived = serializer.load_response(payload)
    arrived += 1
    assert np.array_equal(arrived, array() + 1)


@PICKLES
@pytest.mark.parametrize("room", [2**62, 0], ids=["room", "none"])
def test_a_row_of_small_buffers_is_one_piece(name: str, room: int) -> None:
    serializer, memory = get_serializer(name), HeapMemory(room)
    value = [array(seed, 375) for seed in range(1_000)]
    payload = serializer.dump_response(value, memory)
    assert isinstance(payload, Segments)
    assert len(memory.kept) == (2 if room else 0)  # the other one is the pickle
    assert len(payload.parts[-1]) > sum(each.nbytes for each in value) - 2 * LARGE_BYTES
    arrived = serializer.load_response(as_arrived(payload))
    value[-1][:] = 0
    assert arrived[-1].flags.writeable
    assert same(arrived[-1], array(999, 375))


@needs_memfd
@PICKLES
def test_a_small_buffer_does_not_keep_the_piece_that_it_came_in(name: str) -> None:
    ends, serializer = Ends(), get_serializer(name)
    parts = pieces(serializer.dump_response(VALUES["row of small ones"], HeapMemory()))
    payload = Segments([*parts[:-1], ends.carry(bytes(parts[-1]))])
    arrived = serializer.load_response(payload)
    arrived[-1][:] = 0
    assert same(serializer.load_response(payload), VALUES["row of small ones"])
    del payload
    assert ends.settle() == 1
    assert same(arrived[:-1], VALUES["row of small ones"][:-1])
    ends.close()


@PICKLES
def test_a_few_small_buffers_stay_in_the_pickle(name: str) -> None:
    value = [array(seed, 100) for seed in range(50)]
    payload = get_serializer(name).dump_response(value, HeapMemory())
    assert type(payload) is bytes
    assert same(pickle.loads(payload), value)


@needs_memfd
@PICKLES
def test_a_payload_gives_each_who_loads_it_a_value_of_his_own(name: str) -> None:
    ends, serializer = Ends(), get_serializer(name)
    written = serializer.dump_response(VALUES["several"], HeapMemory())
    payload = Segments(
        [ends.carry(bytes(p)) if len(p) >= LARGE_BYTES else p for p in pieces(written)]
    )
    first = serializer.load_response(payload)
    assert same(first, VALUES["several"])
    first[0][:] = 0
    second = serializer.load_response(payload)
    assert same(second, VALUES["several"])
    second[0][:] = 1
    assert same(pickle.loads(plain_pickle(payload)), VALUES["several"])
    assert same(serializer.load_response(payload), VALUES["several"])
    assert not first[0].any()
    del first, second, payload
    assert ends.settle() == 2
    ends.close()


@needs_memfd
def test_a_payload_that_was_passed_on_unopened_is_still_read_in_place() -> None:
    ends, serializer = Ends(), get_serializer("cloudpickle")
    written = pieces(serializer.dump_response(array(), HeapMemory()))
    view = ends.carry(bytes(written[-1]))
    payload = Segments([*written[:-1], view])
    assert same(pickle.loads(plain_pickle(payload)), array())
    value = serializer.load_response(payload)
    value[0] = 42.0
    assert np.frombuffer(view)[0] == 42.0
    del value, payload, view
    ends.close()


@PICKLES
def test_what_was_read_only_is_read_only(name: str) -> None:
    serializer = get_serializer(name)
    payload = as_arrived(serializer.dump_response(VALUES["read-only"], HeapMemory()))
    assert not serializer.load_response(payload).flags.writeable


@PICKLES
def test_what_the_caller_changes_after_the_call_is_not_sent(name: str) -> None:
    value = array()
    payload = get_serializer(name).dump_request((value,), {"x": value}, HeapMemory())
    value[:] = 0
    (arrived,), kwargs = get_serializer(name).load_request(payload)
    assert np.array_equal(arrived, array())
    assert kwargs["x"] is arrived


@pytest.mark.parametrize("name", ["msgpack", "orjson", "noop"])
def test_other_serializers_write_large_payloads_into_memory(name: str) -> None:
    serializer, memory = get_serializer(name), HeapMemory()
    value = b"n" * LARGE_BYTES if name == "noop" else ["t" * LARGE_BYTES]
    request = serializer.dump_request((value,), {}, memory)
    response = serializer.dump_response(value, memory)
    assert len(memory.kept) == 2
    assert serializer.load_request(request) == ((value,), {})
    assert serializer.load_response(response) == value
    assert type(serializer.load_response(response)) is type(value)


def test_a_payload_that_is_passed_on_unopened_is_a_plain_pickle() -> None:
    payload = get_serializer("cloudpickle").dump_response(VALUES["several"], HeapMemory())
    request = get_serializer("cloudpickle").dump_request((Pickled(payload),), {})
    (arrived,), _ = pickle.loads(joined(request))
    assert same(arrived, VALUES["several"])


@settings(deadline=None)  # it is about bytes, not about time
@given(places=st.lists(st.integers(0, 2**21), max_size=12))
def test_a_value_is_the_same_wherever_its_payload_is_cut(places: list[int]) -> None:
    for kind in ("several", "small and large ones"):
        payload = joined(get_serializer("pickle").dump_response(VALUES[kind], HeapMemory()))
        bounds = [0, *sorted(place % (len(payload) + 1) for place in places), len(payload)]
        parts = [memoryview(payload[a:b]) for a, b in itertools.pairwise(bounds) if a < b]
        assert same(load(Segments(parts)), VALUES[kind])


@settings(deadline=None)  # it is about bytes, not about time
@given(missing=st.integers(1, 10**6))
def test_a_payload_that_is_cut_off_is_an_error(missing: int) -> None:
    payload = joined(get_serializer("pickle").dump_response(VALUES["several"], HeapMemory()))
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError)):
        load(payload[: max(0, len(payload) - missing)])


@needs_memfd
def test_what_a_load_copies_is_told_before() -> None:
    ends, serializer = Ends(), get_serializer("cloudpickle")

    def arrived(value: Any) -> Segments:
        parts = pieces(serializer.dump_response(value, HeapMemory()))
        return Segments([ends.carry(bytes(p)) if len(p) >= LARGE_BYTES else p for p in parts])

    payload = arrived({"a": [array(), "x" * 1000]})
    assert 1000 < copied_bytes(payload) < 2000
    serializer.load_response(payload)
    assert copied_bytes(payload) == len(payload)  # who loads it again gets a copy
    for kind in ("bytes", "row of small ones", "text"):
        payload = arrived(VALUES[kind])
        assert copied_bytes(payload) == len(payload)
    assert copied_bytes(b"\0" * 100) == 100
    assert copied_bytes(Segments([b"\0" * 100, b"\xff" * 100])) == 200
    assert copied_bytes(Segments([b"\0\xff\xff\xff\xff"])) == 5
    del payload
    ends.settle()
    ends.close()
