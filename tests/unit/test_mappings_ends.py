"""The receiver's side: segments that go while views live, and peers that lie about them."""

from __future__ import annotations

import array
import ctypes
import gc
import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from serve_grpc.payload import claimed, unwritten
from serve_grpc.shared_memory.mappings import Mappings
from serve_grpc.shared_memory.segments import SegmentRefusedError, create
from tests.descriptors import nothing_left_open
from tests.unit.shared_memory_ends import MIB, SIZE, Ends, is_open, needs_memfd, open_descriptors

pytestmark = needs_memfd
PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def address_of(view: memoryview) -> int:
    """Where a view begins in memory; it is held by nothing that this makes."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def is_mapped(address: int) -> bool:
    """Whether the kernel has something mapped there."""
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps]
    return any(int(low, 16) <= address < int(high, 16) for low, high in ranges)


class TestUnmapping:
    def test_a_removed_segment_goes_when_its_last_view_dies(self, ends: Ends) -> None:
        place = ends.send(b"a" * SIZE)
        view = ends.mappings.take(*place)
        mapped = ends.mappings.bytes
        ends.mappings.remove(place[0])
        gc.collect()
        assert ends.mappings.bytes == mapped  # it counts as long as it is there
        assert view == b"a" * SIZE
        view[:] = b"b" * SIZE
        with pytest.raises(SegmentRefusedError, match="no segment"):
            ends.mappings.take(*place)
        del view
        assert ends.released == [place]
        ends.mappings.settle()
        assert ends.mappings.bytes == 0

    def test_views_outlive_the_end_of_the_session(self, ends: Ends) -> None:
        view = ends.carry(b"a" * SIZE)
        part = view[-10:]
        del view
        ends.mappings.close()
        ends.pool.close()
        gc.collect()
        assert is_mapped(address_of(part))
        assert part == b"a" * 10
        part[:] = b"b" * 10
        del part
        assert ends.released == []  # there is nobody to be told
        ends.mappings.settle()

    def test_a_segment_without_views_is_unmapped_at_once(self, ends: Ends) -> None:
        place = ends.send(b"a" * SIZE)
        view = ends.mappings.take(*place)
        address = address_of(view)
        del view
        ends.mappings.settle()
        assert is_mapped(address)
        ends.mappings.remove(place[0])
        assert not is_mapped(address)

    def test_the_descriptor_is_there_to_pass_it_on(self, ends: Ends) -> None:
        place = ends.send(b"a" * SIZE)
        other = Mappings(64 * MIB, lambda *_: None)
        other.add(5, os.dup(ends.mappings.descriptor(place[0])), ends.sent[place[:2]].segment_bytes)
        assert other.take(5, *place[1:]) == b"a" * SIZE
        other.close()


class TestOrigins:
    def test_what_was_sent_can_be_read_after_a_view_was_written_to(self, ends: Ends) -> None:
        views = [ends.carry(data * SIZE) for data in (b"a", b"b")]
        for view in views:
            view[:] = b"x" * SIZE
        assert [view.obj.origin.read() for view in views] == [b"a" * SIZE, b"b" * SIZE]
        assert views[0] == b"x" * SIZE
        assert views[0].obj.origin.size == SIZE

    def test_what_was_sent_can_be_read_as_long_as_a_view_lives(self, ends: Ends) -> None:
        view = ends.carry(b"a" * SIZE)
        view[:1] = b"x"
        ends.mappings.close()
        ends.pool.close()
        assert view.obj.origin.read() == b"a" * SIZE
        before = open_descriptors()
        del view
        gc.collect()
        assert open_descriptors() < before

    def test_one_reader_gets_the_view_and_the_others_copies_of_what_was_sent(
        self, ends: Ends
    ) -> None:
        view = ends.carry(b"a" * SIZE)
        gate = threading.Barrier(8)

        def claim() -> None:
            gate.wait()
            found.append(claimed(view))

        found: list[memoryview | bytearray] = []
        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [each is view for each in found].count(True) == 1
        view[:] = b"x" * SIZE
        assert [bytes(each) for each in found if each is not view] == [b"a" * SIZE] * 7
        assert claimed(view) == unwritten(view) == b"a" * SIZE

    def test_of_a_part_every_reader_gets_a_copy(self, ends: Ends) -> None:
        part = ends.carry(b"ab" * (SIZE // 2))[1:]
        first, second = claimed(part), claimed(part)
        first[:] = b"x" * len(first)
        assert second == part == b"ba" * (SIZE // 2 - 1) + b"b"


class TestAttacks:
    @pytest.fixture
    def mappings(self) -> Iterator[Mappings]:
        made = Mappings(4 * MIB, lambda *_: None, max_segments=3)
        segment = create(MIB)
        made.add(1, os.dup(segment.fd), MIB)
        segment.close()
        yield made
        made.close()

    @pytest.mark.parametrize(
        ("offset", "size"),
        [
            (0, 0),
            (0, -1),
            (0, MIB + 1),
            (0, 2**63),
            (-PAGE, PAGE),
            (MIB, 1),
            (MIB - PAGE, PAGE + 1),
            (2**63, 1),
            (2**64 - PAGE, 2 * PAGE),
            (1, 10),
            (PAGE - 1, 10),
        ],
    )
    def test_a_range_that_is_not_there_is_refused(
        self, mappings: Mappings, offset: int, size: int
    ) -> None:
        with pytest.raises(SegmentRefusedError, match="has no range"):
            mappings.take(1, offset, size)
        assert len(mappings.take(1, 0, MIB)) == MIB

    @pytest.mark.parametrize(
        ("offset", "size"), [(4 * PAGE, 1), (5 * PAGE, 1), (3 * PAGE, PAGE + 1), (0, MIB)]
    )
    def test_a_range_that_is_in_use_is_refused(
        self, mappings: Mappings, offset: int, size: int
    ) -> None:
        view = mappings.take(1, 4 * PAGE, PAGE + 1)
        with pytest.raises(SegmentRefusedError, match="in use"):
            mappings.take(1, offset, size)
        before, after = mappings.take(1, 0, 4 * PAGE), mappings.take(1, 6 * PAGE, PAGE)
        assert mappings.live == 3
        del view, before, after
        assert len(mappings.take(1, offset, size)) == size

    def test_unknown_segments_are_refused(self, mappings: Mappings) -> None:
        for number in (0, 2, -1, 2**64):
            with pytest.raises(SegmentRefusedError, match=f"no segment {number}"):
                mappings.take(number, 0, 1)
            with pytest.raises(SegmentRefusedError, match=f"no segment {number}"):
                mappings.remove(number)

    def test_a_number_that_is_known_is_refused(self, mappings: Mappings) -> None:
        segment = create(PAGE)
        with pytest.raises(SegmentRefusedError, match="here already"):
            mappings.add(1, segment.fd, PAGE)
        assert is_open(segment.fd)
        segment.close()

    def test_a_flood_of_segments_is_refused(self, mappings: Mappings) -> None:
        segment = create(PAGE)
        mappings.add(2, os.dup(segment.fd), PAGE)
        view = mappings.take(2, 0, 1)
        mappings.remove(2)  # it waits for its view, and still counts
        mappings.add(3, os.dup(segment.fd), PAGE)
        with pytest.raises(SegmentRefusedError, match="more than 3"):
            mappings.add(4, segment.fd, PAGE)
        assert is_open(segment.fd)
        del view
        mappings.add(4, os.dup(segment.fd), PAGE)
        segment.close()

    def test_more_memory_than_is_allowed_is_refused(self, mappings: Mappings) -> None:
        segment = create(2 * MIB)
        mappings.add(2, os.dup(segment.fd), 2 * MIB)
        with pytest.raises(SegmentRefusedError, match="are in use"):
            mappings.add(3, segment.fd, 2 * MIB)
        mappings.remove(2)
        mappings.add(3, os.dup(segment.fd), 2 * MIB)
        segment.close()

    def test_what_is_refused_leaves_nothing_behind(self, mappings: Mappings) -> None:
        with nothing_left_open():
            reader, writer = os.pipe()
            with pytest.raises(SegmentRefusedError):
                mappings.add(2, reader, PAGE)
            os.close(reader)
            os.close(writer)
        assert mappings.bytes == MIB


def test_whatever_ends_first_no_descriptor_is_left() -> None:
    def use() -> None:
        ends = Ends()
        views = [ends.carry(b"a" * size) for size in (SIZE, MIB, 4 * MIB)]
        del views[1]
        ends.close()
        for sent in ends.sent.values():
            sent.abandon()
        ends.pool.trim()
        assert ends.pool.statistics().segments == 0
        assert bytes(views[1]) == b"a" * 4 * MIB

    def descriptors_after(turns: int) -> int:
        for _ in range(turns):
            use()
        gc.collect()
        return open_descriptors()

    assert descriptors_after(2) == descriptors_after(10)


def test_the_sender_may_die_while_its_payload_is_read() -> None:
    """Another process makes the memory, is killed, and its payload is still there."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    child = os.fork()
    if child == 0:
        try:
            segment = create(SIZE)
            segment.view[:] = b"c" * SIZE
            descriptors = array.array("i", [segment.fd])
            there.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            signal.pause()
        finally:
            os._exit(1)
    try:
        _, ancillary, _, _ = here.recvmsg(1, socket.CMSG_SPACE(4))
        fd = array.array("i", ancillary[0][2])[0]
        mappings = Mappings(MIB, lambda *_: None)
        mappings.add(1, fd, SIZE)
        assert not os.get_inheritable(fd)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        here.close()
        there.close()
    view = mappings.take(1, 0, SIZE)
    assert view == b"c" * SIZE
    view[:] = b"d" * SIZE
    mappings.close()
    assert view == b"d" * SIZE
