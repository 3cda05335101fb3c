"""What the pure parts of a call cost: codec, session machines, pick, serializers.

No sockets, no event loop, no Ray instance. Session times are for a batch of `BATCH` calls.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.protocol.caller import CallerSession, Envelope, RequestFields
from serve_grpc.protocol.replica import ReplicaSession
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from serve_grpc.routing.picker import Picker
from serve_grpc.serialization import get_serializer

BATCH = 32
SECRET = b"s" * 32
LIMIT = 64 * 1024 * 1024
ENVELOPE = Envelope("__call__", "cloudpickle", "cloudpickle", False, "/", "default")


def open_sessions() -> tuple[CallerSession[int], ReplicaSession]:
    """Two machines that have shaken hands."""
    caller: CallerSession[int] = CallerSession(
        replica_id="r", secret=SECRET, nonce=b"c" * 16, max_message_bytes=LIMIT
    )
    replica = ReplicaSession(
        replica_id="r",
        secret=SECRET,
        nonce=b"r" * 16,
        epoch=1,
        max_ongoing_requests=100,
        max_message_bytes=LIMIT,
    )
    for _ in range(2):
        replica.receive(caller.outbox.take())
        caller.receive(replica.outbox.take())
    return caller, replica


def round_trip(
    caller: CallerSession[int], replica: ReplicaSession, payload: bytes, calls: int
) -> int:
    """`calls` requests there and results back; returns how many came back."""
    for number in range(calls):
        caller.request(
            number, RequestFields(ENVELOPE, payload, "request-id-of-36-characters-in-all-")
        )
    while caller.outbox:
        for request in replica.receive(caller.outbox.take()).requests:
            replica.reply(request.id, Reply.RESULT, request.payload)
    done = 0
    while replica.outbox:
        done += len(caller.receive(replica.outbox.take()).events)
    return done


@pytest.mark.parametrize("size", [0, 100, 10_000])
def test_a_batch_of_small_calls_through_both_machines(benchmark: Any, size: int) -> None:
    caller, replica = open_sessions()
    assert benchmark(round_trip, caller, replica, b"x" * size, BATCH) == BATCH


@pytest.mark.parametrize("size", [100_000, 1_000_000, 10_000_000])
def test_one_large_call_through_both_machines(benchmark: Any, size: int) -> None:
    caller, replica = open_sessions()
    assert benchmark(round_trip, caller, replica, b"x" * size, 1) == 1


@pytest.mark.parametrize("replicas", [1, 10, 100, 1_000, 10_000])
def test_pick_with_room_everywhere(benchmark: Any, replicas: int) -> None:
    peers = []
    for number in range(replicas):
        peer = Peer(ReplicaFacts(str(number), "127.0.0.1:1", max_ongoing_requests=5))
        peer.state = PeerState.READY
        peers.append(peer)
    picker = Picker(peers, rng=random.Random(1))
    assert benchmark(picker.pick, "", []) in peers


@pytest.mark.parametrize("name", ["cloudpickle", "pickle", "msgpack", "orjson"])
def test_serializing_a_small_request_there_and_back(benchmark: Any, name: str) -> None:
    serializer = get_serializer(name)

    def there_and_back() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return serializer.load_request(serializer.dump_request(("x" * 100,), {}))

    assert benchmark(there_and_back) == (("x" * 100,), {})
