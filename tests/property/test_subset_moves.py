"""Subsets under any changes: what is said to move is what moves, and no more than has to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_grpc.routing.subset import Subset

REPLICAS = st.integers(0, 40).map("replica-{}".format)
CHANGES = st.lists(
    st.one_of(
        st.tuples(
            st.just("update"),
            st.dictionaries(REPLICAS, st.integers(0, 2), max_size=12),
            st.sets(REPLICAS, max_size=12),
        ),
        st.tuples(st.just("resize"), st.integers(0, 50), st.none()),
    ),
    max_size=30,
)


@given(changes=CHANGES, size=st.integers(0, 30), caller=st.binary(max_size=64))
def test_what_is_said_to_move_is_what_moves(
    changes: list[tuple[str, object, object]], size: int, caller: bytes
) -> None:
    subset = Subset(caller, size)
    ranks: dict[str, int] = {}
    for what, first, second in changes:
        before = subset.members()
        if what == "resize":
            assert isinstance(first, int)
            size = first
            came, left = subset.resize(size)
            listed_moves = abs(len(subset.members()) - len(before))
        else:
            assert isinstance(first, dict)
            assert isinstance(second, set)
            came, left = subset.update(first, second)
            gone = second & set(ranks)
            new = {one: rank for one, rank in first.items() if one not in ranks}
            ranks = {one: rank for one, rank in ranks.items() if one not in gone} | new
            listed_moves = 2 * (len(gone) + len(new))
        members = subset.members()
        assert set(came) == set(members) - set(before)
        assert set(left) == set(before) - set(members)
        assert len(came) == len(set(came))
        assert len(left) == len(set(left))
        assert len(came) + len(left) <= listed_moves
        assert len(members) == len(subset) == min(size, len(ranks))
        assert subset.outside == len(ranks) - len(members)
        assert {one for one in ranks if one in subset} == set(members)
        inside = [ranks[one] for one in members]
        assert inside == sorted(inside)
        outside = [rank for one, rank in ranks.items() if one not in members]
        assert not inside or not outside or max(inside) <= min(outside)
        fresh = Subset(caller, size)
        fresh.update(ranks, ())
        assert fresh.members() == members
