"""Copies of large buffers: the bytes arrive, and other threads run meanwhile."""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any

import pytest

from serve_grpc.shared_memory.copying import UNLOCKED_BYTES, copy_all, copy_into
from tests.unit.other_threads import lets_others_run

SIZES = [0, 1, 1000, UNLOCKED_BYTES - 1, UNLOCKED_BYTES, UNLOCKED_BYTES + 1, 3 * UNLOCKED_BYTES]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, pickle.PickleBuffer])
def test_all_bytes_arrive_and_no_others_change(size: int, kind: Any) -> None:
    data = os.urandom(size)
    target = bytearray(b"x" * (size + 20))
    copy_into(memoryview(target)[10 : 10 + size], kind(data))
    assert target == b"x" * 10 + data + b"x" * 10


@pytest.mark.parametrize("shape", [(700, 300), (7, 3)])
def test_arrays_of_numbers_are_copied_as_bytes(shape: tuple[int, int]) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(shape[0] * shape[1], dtype="f8").reshape(shape)
    target = bytearray(array.nbytes)
    copy_into(memoryview(target), array)
    assert target == array.tobytes()
    with pytest.raises(BufferError, match="contiguous"):
        copy_into(memoryview(bytearray(array[::2].nbytes)), array[::2])


def test_several_are_copied_one_behind_the_other() -> None:
    pieces = [os.urandom(size) for size in (*SIZES, 3)]
    target = bytearray(sum(SIZES) + 10)
    copy_all(memoryview(target), [memoryview(piece) for piece in pieces])
    assert target == b"".join(pieces) + bytes(7)
    for piece in pieces[1], pieces[-2]:
        with pytest.raises((BufferError, TypeError)):
            copy_all(memoryview(bytes(len(piece))), [piece])


@pytest.mark.parametrize("sizes", [(4, 7), (3, UNLOCKED_BYTES)])
def test_more_than_there_is_room_for_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"fit|different"):
        copy_all(memoryview(bytearray(10)), [bytes(size) for size in sizes])


@pytest.mark.parametrize("size", [100, UNLOCKED_BYTES])
@pytest.mark.parametrize("more", [-1, 1])
def test_other_sizes_are_refused(size: int, more: int) -> None:
    target = bytearray(size)
    with pytest.raises(ValueError, match="do not fit"):
        copy_into(memoryview(target), b"x" * (size + more))
    assert target == bytes(size)
    target.clear()  # nothing holds it


@pytest.mark.parametrize("size", [100, UNLOCKED_BYTES])
def test_what_cannot_be_written_is_refused(size: int) -> None:
    with pytest.raises(BufferError):
        copy_into(memoryview(bytes(size)), bytes(size))


def test_nothing_is_held_afterwards() -> None:
    source, target = bytearray(UNLOCKED_BYTES), bytearray(UNLOCKED_BYTES)
    before = sys.getrefcount(source), sys.getrefcount(target)
    for _ in range(10):
        copy_into(memoryview(target), source)
    assert (sys.getrefcount(source), sys.getrefcount(target)) == before
    source.clear()
    target.clear()


def test_other_threads_run_meanwhile() -> None:
    size = 32 * 1024 * 1024
    source, target = bytes(size), memoryview(bytearray(size))
    assert lets_others_run(lambda: copy_into(target, source))
