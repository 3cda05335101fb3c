"""Pieces of payloads in shared memory: kept for as long as they are referred to, whatever fails."""

from __future__ import annotations

import gc

import pytest

from serve_grpc.shared_memory import pieces as pieces_module
from serve_grpc.shared_memory.pieces import Pieces, range_of
from serve_grpc.shared_memory.ranges import Range
from tests.unit.shared_memory_ends import SIZE, needs_memfd, pool_of

pytestmark = needs_memfd


def test_a_piece_lives_as_long_as_its_last_view() -> None:
    pool = pool_of()
    pieces = Pieces(pool)
    kept = pieces.keep(b"x" * SIZE)
    assert kept is not None
    found = range_of(kept)
    assert found is not None
    assert (bytes(kept), found.size) == (b"x" * SIZE, SIZE)
    part = kept[5:10]
    del kept, found
    gc.collect()
    assert pool.statistics().bytes_in_use == SIZE
    assert bytes(part) == b"xxxxx"
    del part
    assert pool.statistics().bytes_in_use == 0
    pool.close()


@pytest.mark.parametrize(
    ("owner", "name"),
    [(pieces_module, "copy_all"), (Range, "hold"), (pieces_module, "_Watch")],
    ids=["copy", "hold", "watch"],
)
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_fails_in_the_midst_leaves_nothing_in_use(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: type[BaseException]
) -> None:
    def fails(*_: object) -> None:
        raise error

    pool = pool_of()
    pieces = Pieces(pool)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(error):
            pieces.keep(b"x" * SIZE)
    assert pool.statistics().bytes_in_use == 0
    kept = pieces.keep(b"y" * SIZE)
    assert kept is not None
    assert pool.statistics().made == 1  # in the same memory
    assert bytes(kept) == b"y" * SIZE
    pool.close()


@pytest.mark.parametrize("segments", [0, 1], ids=["new memory", "warm memory"])
def test_a_range_that_cannot_be_made_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, segments: int
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    pool = pool_of()
    pieces = Pieces(pool)
    for _ in range(segments):
        pieces.keep(b"x" * SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(Range, "__init__", fails)
        with pytest.raises(MemoryError):
            pieces.keep(b"x" * SIZE)
    assert pool.statistics().bytes_in_use == 0
    kept = pieces.keep(b"y" * SIZE)
    assert kept is not None
    assert pool.statistics().bytes_in_use == SIZE
    pool.close()


def test_several_pieces_are_kept_as_one() -> None:
    pool = pool_of()
    kept = Pieces(pool).gather([memoryview(b"x" * SIZE), memoryview(b""), memoryview(b"y" * 7)])
    assert kept is not None
    found = range_of(kept)
    assert found is not None
    assert (bytes(kept), found.size) == (b"x" * SIZE + b"y" * 7, SIZE + 7)
    del kept, found
    assert pool.statistics().bytes_in_use == 0
    pool.close()
    assert Pieces(pool).gather([memoryview(b"x")]) is None  # no room
