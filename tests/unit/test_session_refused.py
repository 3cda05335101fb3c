"""A session that is refused: the refusal leaves after what is being written, and the call ends."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from serve_grpc._generated.replica_pb2 import CallerBatch, Hello, Proof, Refusal, ReplicaBatch
from serve_grpc.carriers import replica_pump
from serve_grpc.carriers.grpc.accepted import ServerLink
from serve_grpc.carriers.replica_pump import ReplicaPump
from tests.behaviour.serving import Echo
from tests.unit.sessions import REPLICA_ID, new_replica

HELLO = Hello(min_version=1, max_version=1, replica_id=REPLICA_ID, nonce=b"n" * 16)
MESSAGES = (CallerBatch(hello=HELLO), CallerBatch(proof=Proof(mac=b"wrong")))


class Context:
    """In the place of gRPC's: one write at a time, which ends when `may_write` is set."""

    def __init__(self) -> None:
        self._messages = [message.SerializeToString() for message in MESSAGES]
        self.may_write = asyncio.Event()
        self.is_writing = False
        self.written: list[bytes] = []
        self.aborted = ""
        self.status: grpc.StatusCode | None = None

    async def read(self) -> Any:
        await asyncio.sleep(0)
        return self._messages.pop(0) if self._messages else grpc.aio.EOF

    async def write(self, message: bytes) -> None:
        # What was given to gRPC is under way, whether or not somebody still waits for it.
        assert not self.is_writing, "GRPC_CALL_ERROR_TOO_MANY_OPERATIONS"
        self.is_writing = True
        await self.may_write.wait()
        self.is_writing = False
        self.written.append(message)

    async def abort(self, code: grpc.StatusCode, details: str, **_: object) -> None:
        self.aborted, self.status = details, code
        raise grpc.aio.AbortError(details)


async def handle(context: Context) -> None:
    """As the server's handler does."""
    link = ServerLink(context)
    try:
        await ReplicaPump(new_replica(), link, Echo()).run()
    finally:
        link.end_handler()


def test_a_refusal_waits_until_the_challenge_is_written() -> None:
    async def main() -> list[bytes]:
        context = Context()
        running = asyncio.create_task(handle(context))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (context.is_writing, running.done()) == (True, False)
        context.may_write.set()
        with pytest.raises(grpc.aio.AbortError, match="the proof is wrong"):
            await asyncio.wait_for(running, 5)
        assert context.status is grpc.StatusCode.UNAUTHENTICATED
        return context.written

    challenge, refusal = (ReplicaBatch.FromString(m) for m in asyncio.run(main()))
    assert challenge.HasField("challenge")
    assert refusal.refusal.reason == Refusal.UNAUTHENTICATED


def test_a_peer_that_never_reads_its_refusal_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_pump, "REFUSAL_S", 0.05)

    async def main() -> None:
        context = Context()
        with pytest.raises(grpc.aio.AbortError):
            await asyncio.wait_for(asyncio.shield(handle(context)), 5)
        assert context.aborted == "the refusal was not read"

    asyncio.run(main())
