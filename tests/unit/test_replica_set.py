"""What replicas have in common, kept by changes, is what it is when all are looked at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_grpc._serve.replica_facts import ReplicaNews
from serve_grpc.caller.replica_set import ReplicaSet
from serve_grpc.routing.peer import ReplicaFacts

NAMES = tuple("abcd")
FACTS = st.builds(
    ReplicaFacts,
    st.sampled_from(NAMES),
    st.sampled_from(["", "h:1"]),
    node_id=st.sampled_from(["here", "there"]),
    serializers=st.sampled_from([None, frozenset("x"), frozenset("xy"), frozenset("y")]),
    takes_inputs=st.booleans(),
)
NEWS = st.builds(
    ReplicaNews,
    st.lists(FACTS, max_size=4, unique_by=lambda facts: facts.replica_id).map(tuple),
    st.lists(st.sampled_from(NAMES), max_size=3, unique=True).map(tuple),
)


def is_near(facts: ReplicaFacts) -> bool:
    return facts.node_id == "here"


@given(st.lists(NEWS, max_size=8))
def test_it_is_what_all_of_them_say(told: list[ReplicaNews]) -> None:
    replicas = ReplicaSet(is_near=is_near)
    listed: dict[str, ReplicaFacts] = {}
    reached: set[str] = set()
    for news in told:
        changed, gone = replicas.update(news)
        for replica_id in news.gone:
            listed.pop(replica_id, None)
        listed.update((facts.replica_id, facts) for facts in news.changed)
        reached.difference_update(gone)
        reached.update(facts.replica_id for facts in changed)
    reachable = [facts for facts in listed.values() if facts.address]
    lists = [facts.serializers for facts in reachable if facts.serializers is not None]
    assert len(replicas) == len(listed)
    assert {facts.replica_id for facts in reachable} == reached
    assert replicas.has_reachable == bool(reachable)
    assert replicas.takes_inputs == all(facts.takes_inputs for facts in reachable)
    assert replicas.has_near == any(map(is_near, reachable))
    assert replicas.serializers == (frozenset.intersection(*lists) if lists else None)


def test_only_what_is_to_be_done_is_returned() -> None:
    replicas = ReplicaSet()
    ours, serves = ReplicaFacts("a", "h:1"), ReplicaFacts("b", "")
    assert replicas.update(ReplicaNews((ours, serves))) == ([ours], [])
    assert replicas.update(ReplicaNews((), ("b", "x"))) == ([], [])
    assert replicas.update(ReplicaNews((ReplicaFacts("a", ""),))) == ([], ["a"])
    assert len(replicas) == 1


def test_parts_are_small_and_what_is_gone_comes_first() -> None:
    facts = tuple(ReplicaFacts(f"{number}", "h:1") for number in range(5))
    parts = list(ReplicaNews(facts, ("x", "y", "z")).parts(2))
    assert [(len(part.changed), len(part.gone)) for part in parts] == [
        (0, 2),
        (0, 1),
        (2, 0),
        (2, 0),
        (1, 0),
    ]
    assert list(ReplicaNews().parts(2)) == []
