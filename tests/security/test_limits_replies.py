"""A member that grants endless credit and reads nothing: its streams wait, nobody else's do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from serve_grpc.carriers.replica_pump import MAX_QUEUED_REPLY_BYTES
from tests.security.attacked import Attacked, attacked
from tests.security.member import Member, legitimate, member, round_trips
from tests.unit.sessions import STREAM, UNARY, fields

MiB = 2**20
OVERSHOOT_MIB = 48
"""Items that were made before the generators heard that they are held, and gRPC's own buffers."""
STREAMS = 20


@pytest.fixture(scope="module")
def replica() -> Iterator[Attacked]:
    """One for all tests here."""
    with attacked() as started:
        yield started


async def ask(hostile: Member, method: str, count: int, *, stream: bool) -> None:
    """Requests with all the credit there is."""
    envelope = (STREAM if stream else UNARY)._replace(
        method=method, request_serializer="noop", response_serializer="noop"
    )
    for _ in range(count):
        most = {"credit_items": 2**32 - 1, "credit_bytes": 2**32 - 1} if stream else {}
        hostile.session.request("call", fields(b"x", envelope, **most))
    while hostile.session.outbox:
        await hostile.write(hostile.session.outbox.take())


@pytest.mark.parametrize("method", ["pour", "pour_in_thread"])
@pytest.mark.timeout(120)
def test_streams_of_a_member_that_reads_nothing_are_held(replica: Attacked, method: str) -> None:
    async def main() -> None:
        before = await replica.state()
        async with member(replica.port) as hostile:
            await ask(hostile, method, STREAMS, stream=True)
            for _ in range(30):
                await asyncio.sleep(0.1)  # the time given to the attack
            state = await replica.state()
            grown = state.most_rss_mib - before.rss_mib
            print(f"{method}: {STREAMS} streams, {grown:.0f} MiB")
            assert grown <= MAX_QUEUED_REPLY_BYTES / MiB + OVERSHOOT_MIB
            assert state.handlers == STREAMS
            async with legitimate(replica.port) as (connection, chooser):
                assert len(await round_trips(connection, chooser, 20)) == 20
            # Once it reads, they go on, all of them.
            seen: set[int] = set()
            items = 0
            while items < 2 * MAX_QUEUED_REPLY_BYTES // (64 * 1024) or len(seen) < STREAMS:
                message = await asyncio.wait_for(hostile.read(), 20)
                assert message is not None
                for _ in hostile.session.receive(message).events:
                    items += 1
                seen = set(hostile.session.calls)
        for _ in range(100):
            if (await replica.state()).handlers == 0:
                return
            await asyncio.sleep(0.1)
        raise AssertionError("streams outlive their session")

    asyncio.run(main())


def test_a_member_that_reads_nothing_is_given_up_in_the_end() -> None:
    limits = {"carriers.host.MAX_SILENCE_S": 1.0, "carriers.host.SILENT_HEARTBEATS": 0}

    async def main(short: Attacked) -> None:
        async with member(short.port) as hostile:
            await ask(hostile, "pour", STREAMS, stream=True)
            for _ in range(100):
                state = await short.state()
                if (state.sessions, state.handlers) == (0, 0):
                    return
                await asyncio.sleep(0.1)
            raise AssertionError(state)

    with attacked(limits=limits) as short:
        asyncio.run(main(short))


def test_requests_of_a_member_that_reads_nothing_are_not_read(replica: Attacked) -> None:
    """Each of 64 KiB, and so is its reply."""

    async def main() -> None:
        before = await replica.state()
        async with member(replica.port) as hostile:
            envelope = UNARY._replace(
                method="echo", request_serializer="noop", response_serializer="noop"
            )

            async def flood() -> None:
                for number in range(4000):
                    payload = fields(bytes(64 * 1024), envelope, request_id=str(number))
                    hostile.session.request("call", payload)
                    while hostile.session.outbox:
                        await hostile.write(hostile.session.outbox.take())

            flooding = asyncio.ensure_future(flood())
            await asyncio.wait([flooding], timeout=5)
            state = await replica.state()
            assert not flooding.done(), "all 250 MiB were taken"
            assert state.most_rss_mib - before.rss_mib <= 16 + OVERSHOOT_MIB
            flooding.cancel()

    asyncio.run(main())
