"""How calls through every door fail, over a real socket: with a status of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    CallRequest,
    Error,
    Hello,
    Proof,
    Refusal,
    ReplicaBatch,
)
from serve_grpc.caller import trouble as trouble_module
from serve_grpc.carriers.grpc.dial import SESSION_METHOD
from serve_grpc.carriers.grpc.serve import ReplicaServer
from serve_grpc.carriers.grpc.status import MAX_DETAILS_BYTES, fitting_details
from serve_grpc.protocol.handshake import sign_call
from serve_grpc.protocol.status import shortened
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import REPLICA_ID, SECRET, Chooser, Echo, connect, serve
from tests.ray.waiting import eventually_async

CALL = "/serve_grpc.v1.Replica/Call"
SAFE_METADATA_BYTES = 8 * 1024
"""From here on gRPC refuses at random."""
OVERHEAD_BYTES = 512
"""Names and lengths of all entries, and the entries that gRPC adds."""
HELLO = Hello(min_version=1, max_version=1, replica_id=REPLICA_ID, nonce=b"n" * 16)

texts = st.text(max_size=6000)


@contextlib.asynccontextmanager
async def serving(**fields: Any) -> AsyncIterator[tuple[ReplicaServer, int]]:
    server, port, _ = await serve(**fields)
    try:
        yield server, port
    finally:
        await server.stop(0)


class Failing(Echo):
    """Ends plain calls with `error`."""

    error = Error()

    def on_plain_call(self, call: Any) -> None:
        call.end(self.error)


def filled(text: str) -> Error:
    """An error of the user's whose every text is this one."""
    return Error(
        code=Error.USER_EXCEPTION,
        type_name=text,
        message=text,
        traceback=text,
        serializer=text,
        direction=text,
        function_name=text,
        node_ip=text,
        pickled=text.encode(),
        may_have_executed=True,
        pid=2**31 - 1,
        size=2**63,
        limit=2**63,
    )


@given(texts)
def test_details_are_as_long_as_they_may_be_and_whole(text: str) -> None:
    details = fitting_details(text)
    plain = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
    assert text.startswith(details)
    assert len(quote(details, safe=plain)) <= MAX_DETAILS_BYTES
    following = text[len(details) : len(details) + 1]
    assert not following or len(quote(details + following, safe=plain)) > MAX_DETAILS_BYTES


@given(texts)
def test_an_error_and_its_details_fit_into_metadata(text: str) -> None:
    short = shortened(filled(text)).ByteSize()
    assert short * 4 / 3 + MAX_DETAILS_BYTES + OVERHEAD_BYTES < SAFE_METADATA_BYTES
    assert shortened(filled(text[:90])).traceback == text[:90]


def test_details_without_valid_unicode_are_told_all_the_same() -> None:
    assert fitting_details("a\udcffb") == "a\\udcffb"


@pytest.mark.parametrize("letter", ["e", "é", "文", "🦀", "%", "\n"])
def test_the_status_of_a_plain_call_does_not_depend_on_its_text(letter: str) -> None:
    async def main() -> set[tuple[str, str]]:
        failing = Failing()
        failing.error = filled(letter * 3000)
        request = CallRequest(payload=b"x").SerializeToString()
        seen = set()
        async with (
            serving(dispatcher=failing) as (_, port),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            for _ in range(20):
                nonce = os.urandom(8).hex()
                proof = sign_call(SECRET, CALL, REPLICA_ID, request, nonce, time.time())
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await channel.unary_unary(CALL)(request, metadata=(("authorization", proof),))
                # By `iter`: the keys that older versions of gRPC tell to `dict` are pairs.
                trailers = dict(iter(raised.value.trailing_metadata()))
                trailer = trailers["serve-grpc-error-bin"]
                details = raised.value.details() or ""
                assert details.startswith(letter * 80)
                seen.add((raised.value.code().name, Error.FromString(trailer).message[:1]))
        return seen

    assert asyncio.run(main()) == {("UNKNOWN", letter)}


# ------------------------------------------------------------ sessions


@pytest.mark.parametrize(
    ("messages", "reason", "status"),
    [
        (
            [CallerBatch(hello=Hello(min_version=9, max_version=9))],
            Refusal.VERSION,
            "UNIMPLEMENTED",
        ),
        (
            [CallerBatch(hello=Hello(min_version=1, max_version=1, replica_id="文" * 300))],
            Refusal.WRONG_REPLICA,
            "FAILED_PRECONDITION",
        ),
        (
            [CallerBatch(hello=HELLO), CallerBatch(proof=Proof(mac=b"wrong"))],
            Refusal.UNAUTHENTICATED,
            "UNAUTHENTICATED",
        ),
        ([CallerBatch(cancels=[1])], Refusal.PROTOCOL, "INVALID_ARGUMENT"),
        ([], Refusal.DRAINING, "UNAVAILABLE"),
    ],
    ids=["version", "replica", "proof", "protocol", "draining"],
)
def test_a_refused_session_tells_why_and_ends_with_a_failing_status(
    messages: list[CallerBatch], reason: int, status: str
) -> None:
    async def main() -> None:
        async with (
            serving() as (server, port),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            if not messages:
                await server.drain()
            for _ in range(20):
                call = channel.stream_stream(SESSION_METHOD)()
                for message in messages[:-1]:
                    await call.write(message.SerializeToString())
                    assert ReplicaBatch.FromString(await call.read()).HasField("challenge")
                for message in messages[-1:]:
                    await call.write(message.SerializeToString())
                refusal = ReplicaBatch.FromString(await call.read()).refusal
                assert refusal.reason == reason
                assert (await call.code()).name == status
                assert await call.details() == fitting_details(refusal.message)
            await eventually_async(lambda: server.sessions == 0)

    asyncio.run(main())


def test_a_caller_reads_the_refusal_and_not_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble_module, "RECONNECT_S", (0.001, 0.001))
    reasons = set()

    async def main() -> None:
        async with serving() as (_, port):
            connection = connect(port, Chooser(), replica_id="another")
            connection.connect()

            def is_refused_often() -> bool:
                reasons.add(connection.trouble.reason)
                return connection.trouble.times >= 20

            await eventually_async(is_refused_often)
            assert connection.peer.state is not PeerState.READY
            await connection.aclose()

    asyncio.run(main())
    assert reasons - {""} == {"WRONG_REPLICA: this is not replica 'another'"}
