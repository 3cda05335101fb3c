"""Large pickles travel in pieces: nothing is lost at the cuts or changed after the call."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_grpc.payload import LARGE_BYTES, Segments, joined, pieces
from serve_grpc.pickling import dump, load
from serve_grpc.serialization import get_serializer
from tests.unit.other_threads import lets_others_run

BIG = bytes(range(256)) * (LARGE_BYTES // 128)

VALUES = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from([BIG, bytearray(BIG), BIG.hex()]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def cut(payload: bytes, places: list[int]) -> Segments:
    """The payload as it might arrive: in pieces of any size."""
    bounds = [0, *sorted(place % (len(payload) + 1) for place in places), len(payload)]
    parts = [payload[a:b] for a, b in itertools.pairwise(bounds)]
    return Segments([memoryview(part) for part in parts if part])


@settings(deadline=None)  # it is about bytes, not about time
@given(VALUES, st.lists(st.integers(0, 2**20), max_size=12))
def test_a_value_is_the_same_wherever_its_pickle_is_cut(value: Any, places: list[int]) -> None:
    payload = joined(dump(value, pickle.Pickler))
    assert pickle.loads(payload) == value  # a plain pickle, whoever reads it
    assert load(cut(payload, places)) == value
    assert load(payload) == value


@settings(deadline=None)  # it is about bytes, not about time
@given(st.lists(st.integers(0, 2**20), max_size=5), st.integers(1, 10**6))
def test_a_pickle_that_is_cut_off_is_an_error(places: list[int], missing: int) -> None:
    payload = joined(dump([BIG, "end"], pickle.Pickler))
    short = payload[: max(0, len(payload) - missing)]
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        load(cut(short, places))


@pytest.mark.parametrize("name", ["cloudpickle", "pickle"])
def test_large_bytes_are_sent_without_a_copy(name: str) -> None:
    payload = get_serializer(name).dump_request((BIG,), {})
    assert any(part is BIG for part in pieces(payload))
    assert get_serializer(name).load_request(payload) == ((BIG,), {})


@pytest.mark.parametrize("name", ["cloudpickle", "pickle"])
@pytest.mark.parametrize("make", [lambda: np.arange(100_000), lambda: bytearray(BIG)])
def test_what_the_caller_changes_after_the_call_is_not_sent(name: str, make: Any) -> None:
    value, as_called = make(), make()
    payload = get_serializer(name).dump_request((value,), {})
    value[:] = value[::-1].copy()
    ((arrived,), _) = get_serializer(name).load_request(payload)
    assert np.array_equal(arrived, as_called)


def test_an_array_that_arrives_may_be_written() -> None:
    array = np.ones((300, 300))
    arrived = load(cut(joined(dump(array, pickle.Pickler)), [70_000, 200_000]))
    arrived += 1
    assert arrived.sum() == 2 * array.sum()


@pytest.mark.parametrize("make", [bytes, bytearray])
def test_other_threads_run_while_a_large_piece_is_read(make: Any) -> None:
    """As it lies in shared memory, or in a block: a whole object is one piece."""
    payload = dump(make(32 * 1024 * 1024), pickle.Pickler)
    assert lets_others_run(lambda: load(payload))


@pytest.mark.parametrize("value", [b"x" * 100, ["x" * 1000] * 10, np.arange(10)])
def test_small_payloads_are_in_one_piece(value: Any) -> None:
    assert isinstance(get_serializer("cloudpickle").dump_response(value), bytes)


def test_other_serializers_are_given_the_payload_in_one_piece() -> None:
    msgpack = get_serializer("msgpack")
    payload = joined(msgpack.dump_response(BIG))
    assert msgpack.load_response(cut(payload, [1000, 5])) == BIG
    assert get_serializer("noop").load_request(cut(BIG, [77])) == ((BIG,), {})


ROLLED_BACK = """
from serve_grpc.serialization import get_serializer

class Job:
    limit = 10

serializer = get_serializer("cloudpickle")
sent = serializer.dump_response(Job())
Job.limit = 20
serializer.load_response(sent)
print(Job.limit)
"""


def test_an_object_that_comes_back_sets_its_class_to_what_it_was() -> None:
    """cloudpickle's, of classes that are in no module: docs/values.md says so."""
    run = subprocess.run([sys.executable, "-c", ROLLED_BACK], capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("10\n", 0), run.stderr


@pytest.mark.parametrize("name", ["cloudpickle", "pickle"])
def test_whether_a_read_only_array_may_be_written_to_depends_on_its_layout(name: str) -> None:
    """NumPy's; docs/values.md says so."""
    array = np.arange(10)
    array.flags.writeable = False
    serializer = get_serializer(name)
    whole, strided = serializer.load_response(serializer.dump_response([array, array[::2]]))
    assert (whole.flags.writeable, strided.flags.writeable) == (False, True)
