"""Where the outputs of a request go, and when its session's streams are held."""

from __future__ import annotations

import asyncio
from typing import Any

from serve_grpc._generated.replica_pb2 import CallRequest, Error, ReplicaBatch, Reply
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.grpc.plain import PlainCall
from serve_grpc.carriers.replica_pump import MAX_QUEUED_REPLY_BYTES
from serve_grpc.payload import with_refs
from serve_grpc.replica.invocation import Invocation
from serve_grpc.replica.replies import PlainReplies, SessionReplies
from tests.unit.sessions import STREAM, fields, open_pair


class Stream:
    """A session's carrier whose caller reads when told to."""

    def __init__(self) -> None:
        self.caller, self.session = open_pair(limit=2**30)
        self.counters = Counters()
        self.kicks = 0
        self.has_room = asyncio.Event()

    def kick(self) -> None:
        self.kicks += 1

    def kick_item(self) -> None:
        self.kick()

    async def wait_room(self) -> None:
        await self.has_room.wait()


class Held:
    """What the executor is told."""

    def __init__(self) -> None:
        self.told: list[tuple[list[int], bool]] = []

    def __call__(self, streams: list[Invocation], is_held: bool) -> None:
        self.told.append(([one.call_id for one in streams], is_held))


def invocation(replies: Any, call_id: int, *, is_stream: bool = False) -> Invocation:
    return Invocation(replies, call_id, "method", "pickle", "json", is_stream, b"", "id", "id/1")


def open_session(*, calls: int = 1) -> tuple[Stream, SessionReplies, Held]:
    stream, held = Stream(), Held()
    for _ in range(calls):
        stream.caller.request("call", fields(envelope=STREAM))
    stream.session.receive(stream.caller.outbox.take())
    carrier: Any = stream
    return stream, SessionReplies(carrier, held), held


def test_a_result_and_the_end_of_a_stream_end_their_calls() -> None:
    async def main() -> None:
        stream, replies, _ = open_session(calls=2)
        unary, items = invocation(replies, 1), invocation(replies, 2, is_stream=True)
        replies.running.update({1: unary, 2: items})
        replies.finish(unary, b"result", None)
        replies.item(items, b"item")
        replies.finish(items, b"", None)
        batch = ReplicaBatch.FromString(stream.session.outbox.take())
        assert [(reply.id, reply.kind, reply.payload) for reply in batch.replies] == [
            (1, Reply.RESULT, b"result"),
            (2, Reply.ITEM, b"item"),
            (2, Reply.END, b""),
        ]
        assert (replies.running, stream.kicks, stream.counters.frames_sent) == ({}, 3, 3)

    asyncio.run(main())


def test_an_error_goes_with_the_refs_that_it_names() -> None:
    stream, replies, _ = open_session()
    one = invocation(replies, 1)
    replies.finish(one, with_refs(b"", ("a ref",)), Error(message="failed"))
    (reply,) = ReplicaBatch.FromString(stream.session.outbox.take()).replies
    lent = stream.session.replies.lent
    assert (reply.error.message, lent) == ("failed", {reply.lent: ("a ref",)})


def test_streams_are_held_while_their_caller_leaves_replies_unread() -> None:
    async def main() -> None:
        stream, replies, held = open_session(calls=2)
        one, unary = invocation(replies, 1, is_stream=True), invocation(replies, 2)
        replies.running.update({1: one, 2: unary})
        size = MAX_QUEUED_REPLY_BYTES // 8
        for _ in range(8):
            replies.item(one, b"x" * size)
        assert (held.told, replies.is_full) == ([], False)
        for _ in range(2):
            replies.item(one, b"x" * size)
        assert (held.told, replies.is_full) == ([([1], True)], True)
        stream.has_room.set()
        for _ in range(3):
            await asyncio.sleep(0)
        assert (held.told, replies.is_full) == ([([1], True), ([1], False)], False)

    asyncio.run(main())


def test_a_session_that_is_over_waits_for_no_room() -> None:
    async def main() -> None:
        _, replies, held = open_session()
        one = invocation(replies, 1, is_stream=True)
        replies.running[1] = one
        for _ in range(10):
            replies.item(one, b"x" * (MAX_QUEUED_REPLY_BYTES // 8))
        replies.close()
        for _ in range(3):
            await asyncio.sleep(0)
        assert held.told == [([1], True)]

    asyncio.run(main())


def test_a_plain_client_gets_no_refs() -> None:
    async def main() -> None:
        call = PlainCall(CallRequest(), is_stream=False, timeout_s=None, trace={})
        replies = PlainReplies(call)
        replies.finish(invocation(replies, 0), with_refs(b"bytes", ("a ref",)), None)
        error = await call.next()
        assert isinstance(error, Error)
        assert (error.code, error.serializer) == (Error.SERIALIZATION, "json")

    asyncio.run(main())


def test_the_error_of_a_plain_call_travels_as_text_if_it_names_refs() -> None:
    async def main() -> None:
        call = PlainCall(CallRequest(), is_stream=False, timeout_s=None, trace={})
        replies = PlainReplies(call)
        told = Error(message="failed", pickled=b"pickled")
        replies.finish(invocation(replies, 0), with_refs(b"", ("a ref",)), told)
        error = await call.next()
        assert isinstance(error, Error)
        assert (error.message, error.pickled) == ("failed", b"")

    asyncio.run(main())
