"""Floods on loopback, bounded in number and time, with a legitimate caller's latency beside them.

Calm and flood take turns in one run: each phase of the flood is compared with the calm before it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator

import pytest

from serve_grpc._generated.replica_pb2 import CallerBatch, Request, Template
from serve_grpc.config import Settings
from tests.ray.waiting import eventually_async
from tests.security.attacked import (
    MAX_ONGOING_REQUESTS,
    Attacked,
    attacked,
    silent_connections,
)
from tests.security.http2 import (
    END_HEADERS,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SESSION,
    RawPeer,
    frame,
    headers,
)
from tests.security.member import legitimate, member, p99_ms, round_trips

# Each takes many seconds; `test_limits_connections.py` sees the limits themselves break.
pytestmark = pytest.mark.full

CONNECTIONS = 2_000
FLOOD = 50_000
CALLS = 400
ROUNDS = 5
MAX_RATIO = 2.0
CANCEL = (8).to_bytes(4, "big")
LIMITS = {
    "carriers.grpc.credentials.HANDSHAKE_TIMEOUT_MS": 6000,
    "entrance.unproven.HANDSHAKE_TIMEOUT_S": 7.0,
}


@pytest.fixture(scope="module")
def replica() -> Iterator[Attacked]:
    """One with the shipped limits, but shorter times."""
    with attacked(Settings(max_connections=2 * CONNECTIONS + 200), LIMITS) as started:
        yield started


async def latency_beside(replica: Attacked, first: bytes) -> float:
    """The median of p99 in the flood over p99 in the calm, of several rounds."""
    ratios = []
    async with legitimate(replica.port) as (connection, chooser):
        await round_trips(connection, chooser, 200)
        for _ in range(ROUNDS):
            calm = p99_ms(await round_trips(connection, chooser, CALLS))
            with silent_connections(replica.port, first, CONNECTIONS) as closed:
                flood = p99_ms(await round_trips(connection, chooser, CALLS))
                state = await replica.state()
                assert state.files >= CONNECTIONS, "they were gone before it was measured"
                took_s = await asyncio.get_running_loop().run_in_executor(None, closed)
            ratios.append(flood / calm)
            print(
                f"2,000 that sent {first[:3]!r}: p99 {calm:.2f} ms in the calm, {flood:.2f} ms "
                f"beside it; {state.most_rss_mib:.0f} MiB at most; closed after {took_s:.1f} s"
            )
    return statistics.median(ratios)


@pytest.mark.parametrize("first", [b"", PREFACE], ids=["silent", "preface"])
@pytest.mark.timeout(300)
def test_2000_connections_that_say_nothing_are_closed_and_slow_nobody(
    replica: Attacked, first: bytes
) -> None:
    async def main() -> None:
        before = await replica.state()
        assert await latency_beside(replica, first) <= MAX_RATIO
        assert (await replica.state()).files <= before.files + 5

    asyncio.run(main())


@pytest.mark.timeout(300)
def test_connections_over_the_shipped_limit_are_closed_at_once() -> None:
    async def main(few: Attacked) -> None:
        async with legitimate(few.port) as (connection, chooser):
            peers = [await RawPeer.connect(few.port, b"") for _ in range(2 * CONNECTIONS)]
            allowed = Settings.max_connections - 1
            await eventually_async(
                lambda: sum(p.closed_s is None for p in peers) <= allowed, timeout_s=5
            )
            assert len(await round_trips(connection, chooser, 20)) == 20
            assert (await few.state()).files <= Settings.max_connections + 100
            for peer in peers:
                await peer.close()

    with attacked() as few:
        asyncio.run(main(few))


@pytest.mark.parametrize("path", [SESSION, "/serve_grpc.v1.Replica/Call"])
@pytest.mark.timeout(300)
def test_50000_calls_opened_and_cancelled_by_an_unproven_peer(replica: Attacked, path: str) -> None:
    async def main() -> None:
        before = await replica.state()
        block = headers(path, [("authorization", "serve-grpc-v1 1 2 3")])
        async with legitimate(replica.port) as (connection, chooser):
            calm = p99_ms(await round_trips(connection, chooser, CALLS))
            peer = await RawPeer.connect(replica.port)
            begin = time.perf_counter()
            beside: list[float] = []
            for number in range(FLOOD):
                stream = 2 * number + 1
                peer.send(
                    frame(HEADERS, END_HEADERS, stream, block)
                    + frame(RST_STREAM, 0, stream, CANCEL)
                )
                if number % 500 == 0:
                    await peer.writer.drain()
                    beside += await round_trips(connection, chooser, 5)
            took = time.perf_counter() - begin
            state = await replica.state()
            print(
                f"{path}: 50,000 in {took:.1f} s; p99 {calm:.2f} ms before, {p99_ms(beside):.2f} "
                f"ms beside; {state.most_handlers} handlers, {state.unproven} unproven, "
                f"{state.most_rss_mib - before.rss_mib:.0f} MiB"
            )
            assert state.most_handlers <= 1  # the legitimate caller's
            assert state.most_rss_mib - before.rss_mib <= 64
            await peer.close()
            await _nobody_left(replica, but=1)

    asyncio.run(main())


async def _nobody_left(replica: Attacked, *, but: int) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        state = await replica.state()
        if (state.unproven, state.handlers) == (0, 0) and state.sessions == but:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(state)


@pytest.mark.timeout(300)
def test_50000_requests_sent_and_cancelled_by_a_member(replica: Attacked) -> None:
    async def main() -> None:
        before = await replica.state()
        template = Template(
            number=1, method="hold", request_serializer="noop", response_serializer="noop"
        )
        async with (
            legitimate(replica.port) as (connection, chooser),
            member(replica.port) as hostile,
        ):
            reading = asyncio.ensure_future(hostile.read_to_pong(1))
            await hostile.write(CallerBatch(templates=[template]).SerializeToString())
            before_last = last = range(0)
            for start in range(1, FLOOD, 500):
                ids = range(start, start + 500)
                requests = [Request(id=i, template=1, request_id="flood") for i in ids]
                await hostile.write(CallerBatch(requests=requests).SerializeToString())
                await hostile.write(CallerBatch(cancels=before_last).SerializeToString())
                before_last, last = last, ids
            await hostile.write(CallerBatch(cancels=[*before_last, *last]).SerializeToString())
            await hostile.write(CallerBatch(ping=1).SerializeToString())
            await asyncio.wait_for(reading, 60)
            state = await replica.state()
            grown = state.most_rss_mib - before.rss_mib
            print(f"requests and cancels: {state.most_handlers} handlers, {grown:.0f} MiB")
            assert 0 < state.most_handlers <= MAX_ONGOING_REQUESTS
            assert grown <= 64
            # The flood held every slot, as a member may; when it is over they are all free.
            await _nobody_left(replica, but=2)
            assert len(await round_trips(connection, chooser, 50)) == 50
        await _nobody_left(replica, but=0)

    asyncio.run(main())


@pytest.mark.timeout(300)
def test_2000_unproven_peers_on_open_sessions_do_not_keep_a_member_out(replica: Attacked) -> None:
    """As many unproven peers as may be are read from, and hundreds wait."""

    async def main() -> None:
        block = headers(SESSION)
        peers = [await RawPeer.connect(replica.port) for _ in range(4)]
        for peer in peers:
            for number in range(500):
                peer.send(frame(HEADERS, END_HEADERS, 2 * number + 1, block))
        for _ in range(200):
            state = await replica.state()
            if state.unproven > 500:
                break
            await asyncio.sleep(0.02)
        assert 500 < state.unproven <= 1024 + 63
        begin = time.perf_counter()
        async with legitimate(replica.port) as (connection, chooser):
            opened_s = time.perf_counter() - begin
            print(f"a member is let in after {opened_s:.2f} s, past {state.unproven} unproven")
            assert len(await round_trips(connection, chooser, 20)) == 20
            await _nobody_left(replica, but=1)
        assert opened_s < 4
        for peer in peers:
            await peer.close()

    asyncio.run(main())
