"""A caller's subset of the replicas: who is in it, how evenly, what moves, how large it is."""

from __future__ import annotations

from collections import Counter

import pytest

from serve_grpc.routing.subset import SHARE, Size, Subset

FLEET = {f"replica-{number}": 0 for number in range(300)}


def subset_of(ranks: dict[str, int], size: int, caller: int = 0) -> Subset:
    subset = Subset(caller.to_bytes(8, "big"), size)
    subset.update(ranks, ())
    return subset


# ------------------------------------------------------------ who is in it


@pytest.mark.parametrize("count", [0, 1, 23, 24])
def test_of_few_replicas_all_are_in_it(count: int) -> None:
    few = dict(list(FLEET.items())[:count])
    subset = subset_of(few, 24)
    assert set(subset.members()) == set(few)
    assert len(subset) == count
    assert subset.outside == 0


def test_of_many_as_many_as_it_is_large() -> None:
    subset = subset_of(FLEET, 24)
    assert len(subset) == len(set(subset.members())) == 24
    assert subset.outside == 276
    assert [one for one in FLEET if one in subset] == [
        one for one in FLEET if one in set(subset.members())
    ]
    assert "replica of another deployment" not in subset


def test_in_which_order_replicas_were_listed_does_not_matter() -> None:
    one_by_one = Subset(bytes(8), 24)
    for one in reversed(FLEET):
        one_by_one.update({one: 0}, ())
    assert one_by_one.members() == subset_of(FLEET, 24).members()


def test_preferred_replicas_come_first() -> None:
    ranks = {one: 2 - (number < 30) - (number < 5) for number, one in enumerate(FLEET)}
    members = subset_of(ranks, 24).members()
    assert set(members[:5]) == set(list(FLEET)[:5])
    assert set(members) <= set(list(FLEET)[:30])


def test_the_first_of_some_are_those_that_would_come_first() -> None:
    subset = subset_of(FLEET, 24)
    everyone = subset.first_of(FLEET, len(FLEET))
    assert everyone[:24] == subset.members()
    assert subset.first_of(everyone[100:110], 3) == everyone[100:103]


# ------------------------------------------------------------ evenness


def in_subsets(fleet: dict[str, int], callers: int, size: int) -> Counter[str]:
    """In how many subsets each replica is."""
    counts = Counter(dict.fromkeys(fleet, 0))
    for caller in range(callers):
        counts.update(subset_of(fleet, size, caller).members())
    return counts


def test_each_replica_is_in_about_as_many_subsets() -> None:
    counts = in_subsets(FLEET, 300, 24)
    assert sum(counts.values()) == 300 * 24
    assert max(counts.values()) <= 2 * 24
    assert min(counts.values()) >= 24 / 4
    # As chance has it (Poisson), and no worse.
    variance = sum((count - 24) ** 2 for count in counts.values()) / len(counts)
    assert 0.7 * 24 < variance < 1.4 * 24


# ------------------------------------------------------------ what moves


def test_who_leaves_moves_only_those_that_had_it() -> None:
    moved = had_it = 0
    for caller in range(100):
        subset = subset_of(FLEET, 24, caller)
        is_in = "replica-7" in subset
        came, left = subset.update({}, ["replica-7"])
        assert left == (["replica-7"] if is_in else [])
        assert len(came) == len(left)
        moved += len(came) + len(left)
        had_it += is_in
    assert moved == 2 * had_it > 0


def test_who_comes_takes_the_place_of_the_last() -> None:
    for caller in range(100):
        subset = subset_of(FLEET, 24, caller)
        before = subset.members()
        came, left = subset.update({"new": 0}, ())
        assert (came, left) in ((["new"], [before[-1]]), ([], []))
        assert len(subset) == 24


@pytest.mark.parametrize("count", [3, 250])
def test_many_changes_come_to_the_same_as_each_of_them(count: int) -> None:
    gone, new = list(FLEET)[:count], {f"new-{number}": number % 2 for number in range(count)}
    at_once, one_by_one = subset_of(FLEET, 24), subset_of(FLEET, 24)
    before = set(at_once.members())
    came, left = at_once.update(new, gone)
    for one in gone:
        one_by_one.update({}, [one])
    for one, rank in new.items():
        one_by_one.update({one: rank}, ())
    assert at_once.members() == one_by_one.members()
    assert set(came).isdisjoint(left)
    assert (before | set(came)) - set(left) == set(at_once.members())


def test_what_is_known_stays_where_it_is_and_who_is_not_there_cannot_leave() -> None:
    subset = subset_of(FLEET, 24)
    assert subset.update(FLEET, ["nobody"]) == ([], [])


def test_it_grows_and_shrinks_at_its_end() -> None:
    subset = subset_of(FLEET, 24)
    before = subset.members()
    came, left = subset.resize(30)
    assert (len(came), left) == (6, [])
    assert subset.members() == before + came
    assert subset.resize(24) == ([], came)
    assert subset.resize(1000)[0] == [one for one in subset.members() if one not in before]
    assert subset.outside == 0
    assert len(subset.resize(0)[1]) == len(FLEET)
    assert subset.update({"new": 0}, ["replica-7"]) == ([], [])


# ------------------------------------------------------------ how large


def after_looks(size: Size, in_flight: int, *, slots: int = 5, unusable: int = 0) -> int:
    for _ in range(200):
        size.look(in_flight, slots, unusable)
    return size.wanted


def test_a_caller_with_few_calls_wants_the_least() -> None:
    assert Size(24).wanted == 24
    assert after_looks(Size(24), 15) == 24


@pytest.mark.parametrize("slots", [1, 5, 100])
def test_its_own_calls_take_a_small_share_of_the_slots(slots: int) -> None:
    wanted = after_looks(Size(24), 50 * slots, slots=slots)
    assert wanted == pytest.approx(50 * SHARE, rel=0.01)


def test_each_replica_that_takes_no_calls_wants_another_in_its_place() -> None:
    assert after_looks(Size(24), 3, unusable=4) == 28


def test_a_moment_of_many_calls_hardly_counts() -> None:
    size = Size(24)
    size.look(50, 5, 0)
    assert size.wanted == 24


def test_it_shrinks_by_steps_and_only_if_it_is_much_too_large() -> None:
    size = Size(24)
    after_looks(size, 500)
    assert size.wanted > 780
    assert size.after_a_while(800, 500, 5, 0) == 800
    after_looks(size, 0)
    assert size.after_a_while(800, 0, 5, 0) == 800  # for a moment ago it was needed
    assert size.after_a_while(800, 0, 5, 0) == 600
    assert size.after_a_while(30, 0, 5, 0) == 24
    assert size.after_a_while(24, 0, 5, 0) == 24


def test_without_any_calls_what_was_before_is_no_measure() -> None:
    size = Size(24)
    after_looks(size, 500)
    size.after_a_while(800, 500, 5, 0)
    size.after_a_while(800, 0, 5, 0)
    assert size.after_a_while(800, 0, 5, 0) == 600
    assert size.wanted == 24
