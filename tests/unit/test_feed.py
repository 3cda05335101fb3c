"""What is known of a deployment after the news of it, in whichever order they come."""

from __future__ import annotations

from serve_grpc.caller.feed import Feed
from serve_grpc.caller.replica_set import ReplicaSet
from serve_grpc.routing.peer import ReplicaFacts

NOBODY = ReplicaSet(())
NEW = ReplicaFacts("a", "h:1", serializers=frozenset({"msgpack"}), takes_inputs=True)
OURS = ReplicaSet((NEW,))
OLD = ReplicaSet((NEW, ReplicaFacts("b", "h:2")))
SERVES = ReplicaSet((ReplicaFacts("a", ""),))


def after(
    feed: Feed, replicas: ReplicaSet, *, is_configured: bool = True, is_custom: bool = False
) -> Feed:
    return feed.after(replicas, is_configured=is_configured, has_custom_router=is_custom)


def test_replicas_and_configuration_make_it_ready() -> None:
    feed = after(Feed(), OURS, is_configured=False)
    assert feed == Feed(serializers=frozenset({"msgpack"}))
    feed = after(feed, OURS)
    assert (feed.is_ready, feed.fallback_reason, feed.is_serve_routed) == (True, None, False)
    assert not after(Feed(), NOBODY).is_ready


def test_replicas_without_an_endpoint_are_left_to_serve_until_there_are_others() -> None:
    feed = after(Feed(), SERVES)
    assert feed.fallback_reason == "has no serve_grpc endpoint"
    assert feed.is_serve_routed
    assert after(feed, NOBODY).is_serve_routed  # nothing else is known of it
    feed = after(feed, OURS)
    assert (feed.fallback_reason, feed.is_serve_routed) == (None, False)


def test_streams_are_arguments_where_every_replica_with_an_endpoint_takes_them() -> None:
    assert Feed().takes_inputs  # as far as is known
    assert after(Feed(), OURS).takes_inputs
    assert not after(Feed(), OLD).takes_inputs
    assert after(after(Feed(), OLD), NOBODY).takes_inputs


def test_a_request_router_of_the_deployments_own_chooses() -> None:
    feed = after(Feed(), NOBODY, is_custom=True)
    assert (feed.is_ready, feed.fallback_reason, feed.is_serve_routed) == (False, None, True)
    assert after(feed, OURS, is_custom=True).is_serve_routed
