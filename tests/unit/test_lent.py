"""What a peer is lent, of this process and of others: numbers, shares, and what it forgets."""

from __future__ import annotations

import gc
import os
import pickle

import pytest

from serve_grpc.carriers.local import lent as lent_module
from serve_grpc.carriers.local.framing import (
    FORGOTTEN,
    NUMBER_BODY,
    RANGE_BODY,
    SEGMENT,
    SEGMENT_BODY,
)
from serve_grpc.carriers.local.lent import Lent
from serve_grpc.protocol.places import Place
from serve_grpc.shared_memory.mappings import Mappings
from serve_grpc.shared_memory.pieces import Pieces
from tests.unit.shared_memory_ends import MIB, SIZE, needs_memfd, pool_of

pytestmark = needs_memfd


class Frames:
    """What the peer is told, in order: (kind, number)."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.takes_descriptors = True

    def send(self, kind: int, body: bytes) -> None:
        self.told.append((kind, *NUMBER_BODY.unpack(body)))

    def send_descriptor(self, kind: int, body: bytes, descriptor: int) -> bool:
        if self.takes_descriptors:
            os.fstat(descriptor)
            self.told.append((kind, SEGMENT_BODY.unpack(body)[0]))
        return self.takes_descriptors


class Owner:
    """Another process: it lends to this one what this one passes on."""

    def __init__(self) -> None:
        self.pool = pool_of()
        self.released: list[int] = []
        self.abandoned: list[int] = []
        self.gone: list[int] = []
        self.mappings = Mappings(
            64 * MIB,
            lambda number, *_: self.released.append(number),
            on_abandoned=lambda number, *_: self.abandoned.append(number),
            on_gone=self.gone.append,
        )
        self.ranges: list[object] = []

    def arrive(self, size: int = SIZE) -> memoryview:
        """A piece in a segment that is new here, unopened."""
        found = self.pool.allocate(size)
        assert found is not None
        self.ranges.append(found)
        number = len(self.ranges)
        self.mappings.add(number, os.dup(found.fd), found.segment_bytes)
        return self.mappings.take(number, found.offset, found.size)

    def passed_on(self, size: int = SIZE) -> memoryview:
        """As `arrive`; it is passed on."""
        view = self.arrive(size)
        assert view.obj.origin.pass_on()
        return view


def lent_to(frames: Frames, max_bytes: int = 64 * MIB) -> Lent:
    return Lent(frames, max_bytes)


def back(place: Place | None) -> bytes:
    assert place is not None
    return RANGE_BODY.pack(place.segment, place.offset)


def segment_of(place: Place | None) -> int:
    assert place is not None
    return place.segment


def test_a_piece_that_was_opened_is_not_lent_on() -> None:
    owner, lent = Owner(), lent_to(Frames())
    unopened, opened = owner.arrive(), owner.arrive()
    assert lent.lend(unopened) is None  # whoever reads it may still write to it
    assert opened.obj.origin.claim()
    assert not opened.obj.origin.pass_on()
    assert lent.lend(opened) is None
    assert unopened.obj.origin.pass_on()
    assert not unopened.obj.origin.claim()  # from here on readers get copies
    assert unopened.obj.origin.pass_on()
    assert lent.lend(unopened) is not None


def test_what_is_passed_on_is_kept_as_it_is_and_all_else_is_copied() -> None:
    owner, pieces = Owner(), Pieces(pool_of())
    passed = owner.passed_on()
    assert pieces.keep(passed) is passed
    with pickle.PickleBuffer(passed).raw() as raw:  # as a pickler hands it over
        assert pieces.keep(raw) is passed
    for other in (owner.arrive(), passed[1:], memoryview(bytes(SIZE))):
        kept = pieces.keep(other)
        assert kept is not None
        assert kept == other
        assert kept.obj is not other.obj
    owner.mappings.close()
    kept = pieces.keep(passed)  # nobody could tell the peer when its owner closes the segment
    assert kept is not None
    assert kept.obj is not passed.obj


def test_a_range_is_held_until_the_peer_gives_it_back() -> None:
    owner, lent = Owner(), lent_to(Frames())
    place = lent.lend(owner.passed_on())
    gc.collect()
    assert owner.released == []
    lent.give_back(back(place), is_abandoned=False)
    assert owner.released == [1]
    with pytest.raises(ValueError, match="is not lent"):
        lent.give_back(back(place), is_abandoned=False)


def test_the_same_piece_twice_to_one_peer_is_two_segments_to_it() -> None:
    """For its writes to the one must not show in the other."""
    owner, frames = Owner(), Frames()
    lent, piece = lent_to(frames), owner.passed_on()
    first, second = lent.lend(piece), lent.lend(piece)
    assert first is not None
    assert second is not None
    assert first.segment != second.segment
    assert first[1:] == second[1:]
    lent.give_back(back(first), is_abandoned=False)
    assert lent.lend(piece) == first  # and no third one
    assert frames.told == [(SEGMENT, 1), (SEGMENT, 2)]


def test_a_piece_of_ones_own_is_lent_once_at_a_time() -> None:
    pieces, frames = Pieces(pool_of()), Frames()
    lent, piece = lent_to(frames), pieces.keep(bytes(SIZE))
    assert piece is not None
    place = lent.lend(piece)
    assert lent.lend(piece) is None
    lent.give_back(back(place), is_abandoned=False)
    assert lent.lend(piece) == place
    assert frames.told == [(SEGMENT, 1)]


@pytest.mark.parametrize("is_foreign", [True, False])
def test_what_a_lost_peer_may_read_is_never_used_again(is_foreign: bool) -> None:
    owner, lent, pool = Owner(), lent_to(Frames()), pool_of()
    piece = owner.passed_on() if is_foreign else Pieces(pool).keep(bytes(SIZE))
    assert piece is not None
    assert lent.lend(piece) is not None
    lent.close()
    del piece
    gc.collect()
    assert owner.released == []
    assert owner.abandoned == ([1] if is_foreign else [])
    assert pool.statistics().bytes_in_use == 0
    assert pool.statistics().segments == 0


@pytest.mark.parametrize("is_foreign", [True, False])
def test_what_the_peer_abandons_is_never_used_again(is_foreign: bool) -> None:
    """It has passed it on itself, to one who is lost."""
    owner, lent, pool = Owner(), lent_to(Frames()), pool_of()
    piece = owner.passed_on() if is_foreign else Pieces(pool).keep(bytes(SIZE))
    assert piece is not None
    place = lent.lend(piece)
    lent.give_back(back(place), is_abandoned=True)
    del piece
    gc.collect()
    assert owner.abandoned == ([1] if is_foreign else [])
    assert owner.released == []
    assert pool.statistics().segments == 0
    # It is no more the peer's, so it does not count for its share.
    assert len(lent) == 0


def test_a_segment_that_is_gone_is_told_when_the_peer_has_nothing_of_it() -> None:
    owner, frames = Owner(), Frames()
    lent, piece = lent_to(frames), owner.passed_on()
    first, second = lent.lend(piece), lent.lend(piece)
    owner.mappings.remove(1)
    assert owner.gone == [piece.obj.origin.number]
    lent.forget(owner.gone[0])
    assert lent.lend(piece) is None
    for place, told in ((second, [(FORGOTTEN, 2)]), (first, [(FORGOTTEN, 1)])):
        assert lent.give_back(back(place), is_abandoned=False)
        before = len(frames.told)  # nothing is sent while a frame is being read
        lent.tell_gone()
        assert frames.told[before:] == told
    lent.forget(owner.gone[0])
    assert len(frames.told) == 4


def test_links_hear_of_segments_that_were_passed_on_alone() -> None:
    owner = Owner()
    views = owner.arrive(), owner.passed_on(), owner.passed_on()
    owner.mappings.remove(1)
    owner.mappings.remove(2)
    owner.mappings.close()
    assert owner.gone == [view.obj.origin.number for view in views[1:]]
    assert len({*owner.gone, *(range(1, 100))}) == 101  # no number of a pool's


def test_one_peer_is_not_lent_more_than_its_share() -> None:
    owner, lent = Owner(), lent_to(Frames(), 2 * SIZE)
    small = lent_to(Frames(), SIZE - 1)
    assert small.lend(owner.passed_on()) is None
    pieces = Pieces(pool_of())
    own = [pieces.keep(bytes(SIZE)) for _ in range(3)]
    assert [part is not None and lent.lend(part) is not None for part in own] == [True, True, False]


def test_unused_segments_of_others_make_room_the_oldest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lent_module, "MAX_FOREIGN", 3)
    owner, frames = Owner(), Frames()
    lent = lent_to(frames)
    pieces = [owner.passed_on() for _ in range(5)]
    places = [lent.lend(piece) for piece in pieces[:3]]
    assert lent.lend(pieces[3]) is None  # all of them are in use
    for place in places[1:]:
        lent.give_back(back(place), is_abandoned=False)
    assert segment_of(lent.lend(pieces[3])) == 4
    assert frames.told[3:] == [(FORGOTTEN, 2), (SEGMENT, 4)]
    assert segment_of(lent.lend(pieces[1])) == 5  # it is shown again
    assert frames.told[5:] == [(FORGOTTEN, 3), (SEGMENT, 5)]


def test_segments_of_others_are_bounded_in_bytes_as_well() -> None:
    """The peer maps whole segments, and copies from those that are too much for it."""
    owner = Owner()
    first, second = owner.passed_on(), owner.passed_on()
    segment = first.obj.origin.segment_bytes
    lent = lent_to(Frames(), 2 * segment - 1)
    place = lent.lend(first)
    assert lent.lend(second) is None
    lent.give_back(back(place), is_abandoned=False)
    assert lent.lend(second) is not None


def test_a_descriptor_that_cannot_be_sent_costs_no_number() -> None:
    owner, frames = Owner(), Frames()
    lent, piece = lent_to(frames), owner.passed_on()
    frames.takes_descriptors = False
    assert lent.lend(piece) is None
    frames.takes_descriptors = True
    place = lent.lend(piece)
    assert place is not None
    assert place.segment == 1
