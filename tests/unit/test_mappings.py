"""The receiver's side: private, writable views, and when their ranges are the sender's again."""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve_grpc.shared_memory import private_pages
from serve_grpc.shared_memory.mappings import Mappings
from serve_grpc.shared_memory.private_pages import PrivatePages
from serve_grpc.shared_memory.segments import SegmentRefusedError
from tests.unit.shared_memory_ends import MIB, SIZE, Ends, needs_memfd

pytestmark = needs_memfd
PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


@pytest.fixture(params=["the kernel says", "the kernel does not say"])
def each_way_to_drop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the kernel telling which pages are private."""
    if request.param == "the kernel does not say":
        monkeypatch.setattr(private_pages, "PAGEMAP", "/proc/no/such")


def address_of(view: memoryview) -> int:
    """Where a view begins in memory; it is held by nothing that this makes."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class TestViews:
    def test_a_view_shows_exactly_what_was_sent_and_can_be_written(self, ends: Ends) -> None:
        view = ends.carry(b"abc" * 50_000)
        assert (view.nbytes, view.format, view.readonly) == (150_000, "B", False)
        assert view == b"abc" * 50_000
        view[:3] = b"xyz"
        assert bytes(view[:4]) == b"xyza"

    def test_nobody_sees_what_another_writes(self, ends: Ends) -> None:
        place = ends.send(b"a" * SIZE)
        other = Mappings(64 * MIB, lambda *_: None)
        sent = ends.sent[place[:2]]
        other.add(sent.number, os.dup(sent.fd), sent.segment_bytes)
        mine, yours = ends.mappings.take(*place), other.take(*place)
        mine[:] = b"m" * SIZE
        assert yours == b"a" * SIZE
        assert sent.view == b"a" * SIZE
        yours[:] = b"y" * SIZE
        assert mine == b"m" * SIZE
        other.close()

    @pytest.mark.usefixtures("each_way_to_drop")
    @pytest.mark.parametrize("written", [0, 1, PAGE + 1, SIZE])
    def test_a_range_that_is_used_again_shows_the_new_bytes(self, ends: Ends, written: int) -> None:
        first = ends.send(b"a" * SIZE)
        view = ends.mappings.take(*first)
        view[:written] = b"w" * written
        assert view[written:] == b"a" * (SIZE - written)
        del view
        assert ends.settle() == 1
        again = ends.send(b"b" * SIZE)
        assert again == first
        assert ends.mappings.take(*again) == b"b" * SIZE

    def test_what_cannot_be_dropped_is_not_handed_out_again(
        self, ends: Ends, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*place: object) -> None:
            raise OSError(22, "Invalid argument")

        place = ends.send(b"a" * SIZE)
        view = ends.mappings.take(*place)
        view[0] = 1
        del view
        with monkeypatch.context() as patch:
            patch.setattr(PrivatePages, "drop", refuse)
            with pytest.raises(OSError, match="Invalid"):
                ends.mappings.settle()
        with pytest.raises(SegmentRefusedError, match="in use"):
            ends.mappings.take(*place)

    def test_the_kernel_says_which_pages_are_private(self, ends: Ends) -> None:
        view = ends.carry(b"a" * MIB)
        address = address_of(view)
        assert view[-1] == ord("a")
        pages = PrivatePages()
        assert pages.are_in(address, MIB) is False
        view[MIB // 2] = 1
        assert pages.are_in(address, MIB) is True
        assert pages.are_in(address, PAGE) is False
        del view
        ends.settle()
        assert pages.are_in(address, MIB) is False
        pages.close()

    def test_a_forked_child_looks_at_its_own_pages(
        self, ends: Ends, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ends.mappings, "on_fork", lambda: None)  # it would make copies
        view = ends.carry(b"a" * MIB)
        address, pages = address_of(view), PrivatePages()
        assert (view[0], pages.are_in(address, MIB)) == (ord("a"), False)
        child = os.fork()
        if child == 0:
            view[0] = 1
            os._exit(0 if pages.are_in(address, MIB) is True else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert pages.are_in(address, MIB) is False
        pages.close()

    def test_what_was_written_goes_back_to_the_system_when_it_is_settled(self, ends: Ends) -> None:
        def private_bytes() -> int:
            with open("/proc/self/smaps_rollup") as lines:
                return next(int(x.split()[1]) for x in lines if x.startswith("Anonymous")) * 1024

        size = 8 * MIB
        data = b"w" * size
        view = ends.carry(data)
        before = private_bytes()
        view[:] = data
        assert private_bytes() - before > size // 2
        del view
        ends.settle()
        assert private_bytes() - before < size // 2


def in_numpy(view: memoryview) -> Any:
    return pytest.importorskip("numpy").frombuffer(view, dtype="u1")


def in_arrow(view: memoryview) -> Any:
    return pytest.importorskip("pyarrow").py_buffer(view)


def in_torch(view: memoryview) -> Any:
    torch = pytest.importorskip("torch")
    return torch.frombuffer(view, dtype=torch.uint8)


def in_pickled_array(view: memoryview) -> Any:
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(len(view), dtype="u1")
    pickled = pickle.dumps(array, protocol=5, buffer_callback=lambda buffer: None)
    return pickle.loads(pickled, buffers=[view])


def in_pickled_bytearray(view: memoryview) -> Any:
    pickled = pickle.dumps(
        pickle.PickleBuffer(bytearray(1)), 5, buffer_callback=lambda buffer: None
    )
    return memoryview(pickle.loads(pickled, buffers=[view]))


HOLDERS = [in_numpy, in_arrow, in_torch, in_pickled_array, in_pickled_bytearray]


class TestRelease:
    @pytest.mark.parametrize("held_in", HOLDERS)
    def test_what_is_made_of_a_view_keeps_the_range(
        self, ends: Ends, held_in: Callable[[memoryview], Any]
    ) -> None:
        place = ends.send(b"a" * SIZE)
        holder = held_in(ends.mappings.take(*place))
        gc.collect()
        assert ends.released == []
        if held_in is not in_arrow:
            holder[0] = 7
            assert int(holder[0]) == 7
        part = holder[10:20]
        del holder
        assert ends.released == []
        del part
        assert ends.released == [place]

    @pytest.mark.parametrize("held_in", [in_numpy, in_pickled_array, in_torch])
    def test_arrays_are_writable(self, ends: Ends, held_in: Callable[[memoryview], Any]) -> None:
        array = held_in(ends.carry(b"a" * SIZE))
        array += 1
        assert int(array[-1]) == ord("b")

    def test_it_is_told_once_whatever_was_made_of_the_view(self, ends: Ends) -> None:
        place = ends.send(b"a" * SIZE)
        view = ends.mappings.take(*place)
        parts = [view[i : i + 10] for i in range(0, 1000, 10)]
        view.release()
        assert ends.released == []
        while parts:
            assert ends.released == []
            parts.pop()
        assert ends.released == [place]
        gc.collect()
        assert ends.released == [place]

    def test_a_range_in_a_circle_of_garbage_is_told(self, ends: Ends) -> None:
        circle: list[Any] = [ends.carry(b"a" * SIZE)]
        circle.append(circle)
        del circle
        gc.collect()
        assert len(ends.released) == 1

    def test_views_that_die_in_many_threads_are_told_once_each(self, ends: Ends) -> None:
        places = [ends.send(b"a" * 70_000) for _ in range(64)]
        views = [ends.mappings.take(*place) for place in places]

        def drop() -> None:
            while True:
                try:
                    views.pop()
                except IndexError:
                    return

        threads = [threading.Thread(target=drop) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ends.released) == sorted(places)
        assert ends.settle() == 64
        assert ends.mappings.live == 0
        assert ends.pool.statistics().bytes_in_use == 0

    def test_views_that_die_while_others_are_taken(self, ends: Ends) -> None:
        """Finalizers in another thread, and in the midst of `take`."""
        waiting: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()

        def drop() -> None:
            while waiting.get() is not None:
                pass

        thread = threading.Thread(target=drop)
        thread.start()
        try:
            for number in range(500):
                data = number.to_bytes(4, "little") * 20_000
                view = ends.carry(data)
                assert bytes(view) == data
                waiting.put(view)
                del view
                ends.settle()
        finally:
            waiting.put(None)
            thread.join()
        ends.settle()
        assert ends.mappings.live == 0


class TestForks:
    @pytest.mark.parametrize("can_copy", [True, False])
    def test_a_childs_view_shows_the_same_when_the_parents_is_gone(
        self, ends: Ends, monkeypatch: pytest.MonkeyPatch, can_copy: bool
    ) -> None:
        if not can_copy:  # as before Linux 5.14
            monkeypatch.setattr(private_pages, "POPULATE_WRITE", 12345)
        view = ends.carry(b"a" * SIZE)
        gone, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(gone, 1)
            os._exit(0 if view == b"a" * SIZE else 1)
        try:
            del view
            assert ends.settle() == can_copy
            again = ends.carry(b"b" * SIZE)
            assert again == b"b" * SIZE
        finally:
            os.write(go, b"x")
            _, status = os.waitpid(child, 0)
            os.close(gone)
            os.close(go)
        assert status == 0
        assert ends.mappings.live == 1

    def test_what_the_parent_wrote_stays(self, ends: Ends) -> None:
        view = ends.carry(b"a" * SIZE)
        view[:3] = b"xyz"
        ends.mappings.on_fork()
        assert view == b"xyz" + b"a" * (SIZE - 3)
