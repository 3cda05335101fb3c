"""Large, compressed and false messages at every door: a clean error at once, and no memory."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psutil
import pytest
from packaging.version import Version

from serve_grpc.carriers.grpc.credentials import open_channel
from serve_grpc.config import Settings
from serve_grpc.protocol import wire
from serve_grpc.protocol.handshake import sign_call
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import REPLICA_ID, SECRET, Chooser, connect
from tests.ray.waiting import eventually_async
from tests.security.attacked import Attacked, attacked
from tests.security.http2 import SESSION, RawPeer, frame, grpc_message
from tests.security.member import legitimate, member, round_trips

OUR_DOORS = [SESSION, "/serve_grpc.v1.Replica/Call", "/serve_grpc.v1.Replica/CallStream"]
DOORS = [
    *OUR_DOORS,
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/no.such.Service/Method",
]
# At gRPC's own doors nobody reads an unproven peer's message. Before this version gRPC looks at a
# message's length when it is read, so such a call stays open, empty, until its connection goes.
LOOKS_AT_LENGTHS_UNASKED = Version(grpc.__version__) >= Version("1.83")
MAX_S = 0.1
MAX_MIB = 32.0
BOMB_MIB = 300
every_door = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.rpartition("/")[2])


@pytest.fixture(scope="module")
def replica() -> Iterator[Attacked]:
    """One for all tests here."""
    with attacked() as started:
        yield started


def bomb() -> bytes:
    """300 MiB of zeros, in 300 KiB of gzip."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [compressor.compress(bytes(2**20)) for _ in range(BOMB_MIB)]
    return b"".join((*parts, compressor.flush()))


async def outcome(
    replica: Attacked,
    attack: Callable[[RawPeer], Any],
    *,
    is_unproven: bool = True,
    is_ended: bool = True,
) -> RawPeer:
    """The peer after `attack` ended; asserts on time, memory and the replica's health."""
    before = await replica.state()
    best = float("inf")
    for _ in range(3):
        peer = await RawPeer.connect(replica.port)
        await eventually_async(lambda peer=peer: peer.frames)
        begin = time.perf_counter()
        await attack(peer)
        while is_ended and not peer.is_over(1):
            assert time.perf_counter() - begin < 5, "it does not end"
            await asyncio.sleep(0.001)
        best = min(best, time.perf_counter() - begin)
        await peer.close()
        if best <= MAX_S:
            break
    assert best <= MAX_S
    after = await replica.state()
    assert after.most_rss_mib - before.rss_mib <= MAX_MIB
    async with legitimate(replica.port) as (connection, chooser):
        assert len(await round_trips(connection, chooser, 3)) == 3
    return peer


@every_door
def test_a_gzip_bomb_is_refused_before_it_is_inflated(replica: Attacked, door: str) -> None:
    data = grpc_message(bomb(), is_compressed=True)

    async def attack(peer: RawPeer) -> None:
        peer.open(1, door, [("grpc-encoding", "gzip"), ("authorization", "serve-grpc-v1 1 2 3")])
        await peer.data(1, data, ends=True)

    peer = asyncio.run(outcome(replica, attack))
    assert peer.said("'gzip' is disabled") or "no.such" in door


@every_door
def test_200_kb_of_metadata_are_refused(replica: Attacked, door: str) -> None:
    async def attack(peer: RawPeer) -> None:
        from tests.security.http2 import CONTINUATION, END_HEADERS, HEADERS, headers

        block = headers(door, [("authorization", "x" * 200_000)])
        parts = [block[start : start + 16_000] for start in range(0, len(block), 16_000)]
        for number, part in enumerate(parts):
            flags = END_HEADERS if number == len(parts) - 1 else 0
            peer.send(frame(CONTINUATION if number else HEADERS, flags, 1, part))

    peer = asyncio.run(outcome(replica, attack))
    assert peer.said("metadata size exceeds hard limit") or "no.such" in door


def test_metadata_of_many_fields_are_refused_too(replica: Attacked) -> None:
    async def attack(peer: RawPeer) -> None:
        peer.open(1, SESSION, [(f"k{number}", "x" * 30) for number in range(400)])

    assert asyncio.run(outcome(replica, attack)).said("grpc-status\x018")  # RESOURCE_EXHAUSTED


@every_door
def test_a_length_that_promises_too_much_is_refused_at_once(replica: Attacked, door: str) -> None:
    async def attack(peer: RawPeer) -> None:
        peer.open(1, door, [("authorization", "serve-grpc-v1 1 2 3")])
        await peer.data(1, b"\0\xff\xff\xff\xff" + bytes(1000), ends=True)

    is_ended = LOOKS_AT_LENGTHS_UNASKED or door in OUR_DOORS
    asyncio.run(outcome(replica, attack, is_ended=is_ended))


def test_a_frame_longer_than_http2_allows_ends_the_connection(replica: Attacked) -> None:
    async def attack(peer: RawPeer) -> None:
        peer.open(1, SESSION)
        peer.send(b"\xff\xff\xff\0\0\0\0\0\1" + bytes(100))
        # The answer to `open` may come first; `outcome` would take it for the end.
        await eventually_async(lambda: peer.closed_s is not None, timeout_s=5)

    assert asyncio.run(outcome(replica, attack)).closed_s is not None


def test_noise_in_the_place_of_the_first_message_is_refused(replica: Attacked) -> None:
    async def attack(peer: RawPeer) -> None:
        peer.open(1, SESSION)
        await peer.data(1, grpc_message(b"\xff" * (wire.MAX_HANDSHAKE_BYTES + 1)))

    asyncio.run(outcome(replica, attack))


def test_a_member_that_sends_noise_loses_its_session_and_nobody_else(replica: Attacked) -> None:
    async def main() -> None:
        async with legitimate(replica.port) as (connection, chooser):
            for noise in (b"\xff" * 100, b"\x2a\x00" * (2**20), b"\x22\xff\xff\xff\xff\x0f"):
                async with member(replica.port) as hostile:
                    await hostile.write(noise)
                    last = (await asyncio.wait_for(hostile.read_to_end(), 10))[-1]
                    assert b"frames" in last or b"CallerBatch" in last or b"0 or in use" in last
                assert len(await round_trips(connection, chooser, 3)) == 3
            assert connection.peer.state is PeerState.READY

    asyncio.run(main())


def test_noise_right_behind_the_handshake_is_refused_too(replica: Attacked) -> None:
    """The welcome may still be on its way when the refusal follows."""

    async def main() -> None:
        for _ in range(300):
            async with member(replica.port) as hostile:
                await hostile.write(b"\x22\xff\xff\xff\xff\x0f")
                last = await asyncio.wait_for(hostile.call.read(), 10)
                assert b"CallerBatch" in last

    asyncio.run(main())


# ------------------------------------------------------------ a hostile replica


@asynccontextmanager
async def hostile_server(reply: bytes) -> AsyncIterator[int]:
    """Answers whatever comes with `reply`, compressed; its port."""
    server = grpc.aio.server(
        compression=grpc.Compression.Gzip, options=[("grpc.max_send_message_length", -1)]
    )

    async def session(_: object, context: Any) -> None:
        await context.read()
        await context.write(reply)
        await context.read()

    handlers = {"Session": grpc.stream_stream_rpc_method_handler(session)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("serve_grpc.v1.Replica", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(0)


def test_a_bomb_of_a_hostile_replica_is_not_inflated() -> None:
    """Server and caller are this process: the bomb's plain form is there before it is measured."""

    async def main() -> None:
        plain = bytes(BOMB_MIB * 2**20)
        async with hostile_server(plain) as port:
            chooser = Chooser()
            connection = connect(port, chooser)
            process = psutil.Process()
            before, most = process.memory_info().rss, 0
            connection.connect()
            deadline = time.monotonic() + 20
            while connection.peer.state is not PeerState.LOST and time.monotonic() < deadline:
                most = max(most, process.memory_info().rss)
                await asyncio.sleep(0.001)
            assert connection.peer.state is PeerState.LOST
            await connection.aclose()
            # What gRPC copies of the message to compress it is the server's.
            assert (most - before) / 2**20 <= BOMB_MIB + MAX_MIB

    asyncio.run(main())


def test_metadata_of_a_hostile_replica_are_refused() -> None:
    async def main() -> None:
        server = grpc.aio.server()

        async def session(_: object, context: Any) -> None:
            context.set_trailing_metadata([("k", "x" * 200_000)])

        handlers = {"Session": grpc.stream_stream_rpc_method_handler(session)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("serve_grpc.v1.Replica", handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with open_channel(f"127.0.0.1:{port}", Settings()) as channel:
            call = channel.stream_stream(SESSION)()
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await server.stop(0)

    asyncio.run(main())


def test_a_signed_plain_call_that_says_its_message_is_compressed_is_refused(
    replica: Attacked,
) -> None:
    """Also from a member: nothing is decompressed unasked."""

    async def main() -> None:
        request, method = b"", "/serve_grpc.v1.Replica/Call"
        proof = sign_call(SECRET, method, REPLICA_ID, request, "nonce", time.time())
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{replica.port}", compression=grpc.Compression.Gzip
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="is disabled"):
                await channel.unary_unary(method)(
                    b"x" * 10_000, metadata=[("authorization", proof)], timeout=10
                )

    asyncio.run(main())
