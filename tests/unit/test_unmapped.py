"""The receiver's side: segments that it cannot map are read by copying."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from serve_grpc.payload import claimed
from serve_grpc.shared_memory.segments import SegmentRefusedError, create
from serve_grpc.shared_memory.unmapped import Unmapped
from tests.unit.shared_memory_ends import MIB, SIZE, needs_memfd, open_descriptors

pytestmark = needs_memfd


@pytest.fixture
def unmapped() -> Iterator[Unmapped]:
    made = Unmapped(max_segments=2)
    segment = create(MIB)
    segment.view[:] = bytes(range(256)) * (MIB // 256)
    made.add(7, os.dup(segment.fd), MIB)
    yield made
    made.close()
    segment.close()


def test_a_range_is_copied(unmapped: Unmapped) -> None:
    view = unmapped.read(7, 4096, SIZE)
    assert view == bytes(range(256)) * (SIZE // 256)
    assert view.readonly  # so each who loads it makes an array of its own
    assert claimed(view) is view


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (-1, 5), (0, MIB + 1), (MIB, 1), (1, 2**62)])
def test_a_range_that_is_not_there_is_refused(unmapped: Unmapped, offset: int, size: int) -> None:
    with pytest.raises(SegmentRefusedError, match="has no range"):
        unmapped.read(7, offset, size)


def test_what_a_peer_sends_is_checked_and_counted(unmapped: Unmapped) -> None:
    reader, writer = os.pipe()
    with pytest.raises(SegmentRefusedError, match="not memory"):
        unmapped.add(8, reader, MIB)
    os.close(reader)
    os.close(writer)
    segment = create(MIB)
    with pytest.raises(SegmentRefusedError, match="were announced"):
        unmapped.add(8, segment.fd, 2 * MIB)
    unmapped.add(8, os.dup(segment.fd), MIB)
    with pytest.raises(SegmentRefusedError, match="more than 2 segments"):
        unmapped.add(9, segment.fd, MIB)
    segment.close()


def test_no_descriptor_is_left(unmapped: Unmapped) -> None:
    before = open_descriptors()
    unmapped.remove(7)
    assert 7 not in unmapped
    assert open_descriptors() == before - 1
    segment = create(MIB)
    unmapped.add(8, os.dup(segment.fd), MIB)
    segment.close()
    unmapped.close()
    assert open_descriptors() == before - 1
