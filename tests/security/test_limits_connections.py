"""Connections that prove nothing, say nothing or are too many: closed, each at its limit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest

from serve_grpc.config import Settings
from tests.behaviour.serving import serve
from tests.ray.waiting import eventually_async
from tests.security.attacked import Attacked, attacked
from tests.security.http2 import (
    DATA,
    HEADERS,
    PREFACE,
    SESSION,
    SETTINGS,
    RawPeer,
    frame,
    grpc_message,
    headers,
)
from tests.security.member import Member, legitimate, member, round_trips

SHORT = {
    "carriers.grpc.credentials.HANDSHAKE_TIMEOUT_MS": 1000,
    "carriers.grpc.credentials.MAX_IDLE_MS": 1500,
    "carriers.grpc.credentials.KEEPALIVE_MS": 1000,
    "carriers.grpc.credentials.REPLICA_KEEPALIVE": 1,
    "carriers.grpc.credentials.PING_TIMEOUT_MS": 1000,
    "entrance.unproven.HANDSHAKE_TIMEOUT_S": 1.5,
    "carriers.host.MAX_SILENCE_S": 2.0,
    "carriers.host.SILENT_HEARTBEATS": 0,
}
AT_ONCE_S = 8.0
"""All of the limits above, and a busy machine."""
CALL = "/serve_grpc.v1.Replica/Call"


@pytest.fixture(scope="module")
def replica() -> Iterator[Attacked]:
    """One with short limits."""
    with attacked(limits=SHORT) as started:
        yield started


@pytest.mark.parametrize(
    "first", [b"", b"\x16\x03\x01", PREFACE[:9], PREFACE], ids=["silent", "tls", "half", "preface"]
)
def test_a_connection_that_does_not_become_one_is_closed(replica: Attacked, first: bytes) -> None:
    async def main() -> None:
        peer = await RawPeer.connect(replica.port, first)
        await eventually_async(lambda: peer.closed_s is not None, timeout_s=AT_ONCE_S)
        await peer.close()

    asyncio.run(main())


def test_a_connection_that_answers_pings_and_asks_nothing_is_closed(replica: Attacked) -> None:
    async def main() -> None:
        peer = await RawPeer.connect(replica.port)
        await eventually_async(lambda: peer.closed_s is not None, timeout_s=AT_ONCE_S)
        await peer.close()

    asyncio.run(main())


async def _trickle(peer: RawPeer, data: bytes) -> None:
    for byte in data:
        if peer.closed_s is not None:
            return
        peer.send(bytes((byte,)))
        await asyncio.sleep(0.25)  # the attack: a byte now and then


@pytest.mark.parametrize(
    "start",
    [
        PREFACE[:4],
        PREFACE + SETTINGS + (1000).to_bytes(3, "big") + bytes((HEADERS, 4)) + b"\0\0\0\1",
    ],
    ids=["preface", "headers"],
)
def test_a_byte_now_and_then_before_a_call_ends_the_connection(
    replica: Attacked, start: bytes
) -> None:
    async def main() -> None:
        peer = await RawPeer.connect(replica.port, start)
        peer.is_polite = False  # in the middle of a frame nothing else can be said
        trickling = asyncio.ensure_future(_trickle(peer, bytes(1000)))
        await eventually_async(lambda: peer.closed_s is not None, timeout_s=AT_ONCE_S)
        trickling.cancel()
        await peer.close()

    asyncio.run(main())


@pytest.mark.parametrize("path", [SESSION, CALL], ids=["session", "call"])
@pytest.mark.parametrize("place", ["frame", "message"])
def test_a_byte_now_and_then_of_an_unproven_peer_ends_its_call(
    replica: Attacked, path: str, place: str
) -> None:
    """Inside an HTTP/2 frame, or in one-byte frames with every ping answered."""

    async def main() -> None:
        peer = await RawPeer.connect(replica.port)
        peer.open(1, path, [("authorization", "serve-grpc-v1 1 2 3")])
        if place == "frame":
            peer.send((1000).to_bytes(3, "big") + bytes((DATA, 0)) + b"\0\0\0\1")
            trickling = asyncio.ensure_future(_trickle(peer, bytes(1000)))
        else:

            async def one_byte_frames() -> None:
                for byte in grpc_message(bytes(1000)):
                    await peer.data(1, bytes((byte,)))
                    await asyncio.sleep(0.25)  # the attack

            trickling = asyncio.ensure_future(one_byte_frames())
        await eventually_async(lambda: peer.is_over(1), timeout_s=AT_ONCE_S)
        trickling.cancel()
        await peer.close()
        await _none_left(replica)

    asyncio.run(main())


async def _none_left(replica: Attacked) -> None:
    for _ in range(100):
        state = await replica.state()
        if state.unproven == 0 and state.sessions == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(state)


def test_a_member_that_says_nothing_is_closed_and_one_that_lives_is_not(
    replica: Attacked,
) -> None:
    async def main() -> None:
        settings = Settings(heartbeat_interval_s=0.05)
        async with (
            legitimate(replica.port, settings) as (connection, chooser),
            member(replica.port) as silent,
        ):
            assert (await replica.state()).sessions == 2
            # A session without calls says something every fifth heartbeat, and needs no more.
            beats = asyncio.ensure_future(_beat(connection))
            await asyncio.wait_for(silent.read_to_end(), AT_ONCE_S)
            assert len(await round_trips(connection, chooser, 3)) == 3
            beats.cancel()
            assert (await replica.state()).sessions == 1

    asyncio.run(main())


async def _beat(connection: object) -> None:
    while True:
        connection.beat(asyncio.get_running_loop().time())  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)


def test_connections_over_the_limit_are_closed_and_those_below_it_go_on() -> None:
    async def main(replica: Attacked) -> None:
        async with legitimate(replica.port) as (connection, chooser):
            peers = [await RawPeer.connect(replica.port) for _ in range(40)]
            await eventually_async(lambda: sum(p.closed_s is not None for p in peers) == 21)
            assert len(await round_trips(connection, chooser, 3)) == 3
            for peer in peers:
                await peer.close()

            async def is_let_in() -> bool:
                peer = await RawPeer.connect(replica.port)
                peer.send(frame(HEADERS, 5, 1, headers(CALL)))
                await eventually_async(lambda: peer.is_over(1) or peer.closed_s is not None)
                await peer.close()
                return peer.said("a call has one request")

            for _ in range(50):
                if await is_let_in():
                    break
            else:
                raise AssertionError("nobody is let in after the others left")

    with attacked(Settings(max_connections=20)) as few:
        asyncio.run(main(few))


def test_sessions_over_the_limit_are_refused_by_name() -> None:
    """Several on one connection, so that the limit of connections does not hide it."""

    async def main() -> None:
        server, port, _ = await serve(Settings(max_connections=2))
        async with member(port) as one, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert one.session.calls == {}
            calls = [channel.stream_stream(SESSION)()]
            await Member(calls[0]).shake_hands()
            calls.append(channel.stream_stream(SESSION)())
            assert await calls[1].code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "SERVE_GRPC_MAX_CONNECTIONS=2" in await calls[1].details()
        await server.stop(0)

    asyncio.run(main())
