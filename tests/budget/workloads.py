"""What the budgets measure: each function prepares a workload and returns the part that counts."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.mailbox import Mailbox
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from serve_grpc.routing.picker import Picker
from serve_grpc.serialization import get_serializer
from tests.unit.sessions import fields, open_pair

__all__ = [
    "BATCH",
    "PICKS",
    "caller_receives",
    "caller_requests",
    "mailbox_hands_over",
    "pick_among",
    "reference_loop",
    "replica_receives",
    "replica_replies",
    "request_serialized",
    "response_serialized",
    "round_trip",
]

BATCH = 32
"""Calls in one message."""
PICKS = 200
"""Chance decides how long one pick takes; the mean of as many is steady."""
PAYLOAD = b"x" * 100
REQUEST_ID = "0a3fbd2e-5d9c-4b0e-9d0b-2d1f6f1f5b1c"

Run = Callable[[], object]


class _Sessions:
    """Two open machines that have exchanged one batch, and the four steps of the next one."""

    def __init__(self) -> None:
        self.caller, self.replica = open_pair()
        self.round_trip()  # the envelope is known from here on

    def request(self) -> bytes:
        for number in range(BATCH):
            self.caller.request(number, fields(PAYLOAD, request_id=REQUEST_ID))
        return self.caller.outbox.take()

    def arrive(self, message: bytes) -> list[Any]:
        return self.replica.receive(message).requests

    def reply(self, requests: list[Any]) -> bytes:
        for request in requests:
            self.replica.reply(request.id, Reply.RESULT, request.payload)
        return self.replica.outbox.take()

    def finish(self, message: bytes) -> None:
        assert len(self.caller.receive(message).events) == BATCH

    def round_trip(self) -> None:
        self.finish(self.reply(self.arrive(self.request())))


def caller_requests() -> Run:
    """The caller's session: requests queued, and the message they make."""
    return _Sessions().request


def replica_receives() -> Run:
    """The replica's session: that message read."""
    sessions = _Sessions()
    message = sessions.request()
    return lambda: sessions.arrive(message)


def replica_replies() -> Run:
    """The replica's session: results queued, and the message they make."""
    sessions = _Sessions()
    requests = sessions.arrive(sessions.request())
    return lambda: sessions.reply(requests)


def caller_receives() -> Run:
    """The caller's session: that message read."""
    sessions = _Sessions()
    message = sessions.reply(sessions.arrive(sessions.request()))
    return lambda: sessions.finish(message)


def round_trip() -> Run:
    """All four steps; may run many times."""
    return _Sessions().round_trip


def pick_among(replicas: int) -> Run:
    """Picks while there is room everywhere."""
    peers = []
    for number in range(replicas):
        peer = Peer(ReplicaFacts(str(number), "127.0.0.1:1", max_ongoing_requests=5))
        peer.state = PeerState.READY
        peers.append(peer)
    picker = Picker(peers, rng=random.Random(1))

    def pick() -> None:
        for _ in range(PICKS):
            assert picker.pick("", []) is not None

    return pick


class _Loop:
    """In the place of an event loop: keeps what is to run on it."""

    def __init__(self) -> None:
        self.scheduled: list[Run] = []

    def call_soon_threadsafe(self, function: Run, **_: Any) -> None:
        self.scheduled.append(function)


def mailbox_hands_over() -> Run:
    """Functions posted to another thread's loop, and run there."""
    loop: Any = _Loop()
    mailbox = Mailbox(loop)
    ran: list[int] = []

    def hand_over() -> None:
        for number in range(BATCH):
            mailbox.post(ran.append, number)
        (drain,) = loop.scheduled
        drain()
        assert len(ran) == BATCH

    return hand_over


def request_serialized() -> Run:
    """Arguments to bytes and back, with the default serializer."""
    serializer = get_serializer("cloudpickle")

    def there_and_back() -> None:
        for _ in range(BATCH):
            serializer.load_request(serializer.dump_request(("x" * 100,), {}))

    return there_and_back


def response_serialized() -> Run:
    """A result to bytes and back, with the default serializer."""
    serializer = get_serializer("cloudpickle")

    def there_and_back() -> None:
        for _ in range(BATCH):
            serializer.load_response(serializer.dump_response("x" * 100))

    return there_and_back


def reference_loop() -> Run:
    """Plain Python that does what machines like these do: calls, attributes, dicts and lists."""

    class Entry:
        __slots__ = ("number", "payload")

        def __init__(self, number: int, payload: bytes) -> None:
            self.number = number
            self.payload = payload

    def add(entries: dict[int, Entry], number: int) -> None:
        entries[number] = Entry(number, PAYLOAD)

    def run() -> None:
        entries: dict[int, Entry] = {}
        out = []
        for number in range(10 * BATCH):
            add(entries, number)
        for number in range(10 * BATCH):
            entry = entries.pop(number)
            if len(entry.payload) <= 1024:
                out.append((entry.number, entry.payload))
        assert len(out) == 10 * BATCH

    return run
