"""What a link promises, held over every carrier: in memory, and gRPC seen from either side.

`near` and `far` are the two ends. gRPC's own ends differ in what they can tell the other side, and
that stands in `Carrier`; the rest is the same for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from serve_grpc.carriers.grpc.accepted import ServerLink
from serve_grpc.carriers.grpc.credentials import server_options
from serve_grpc.carriers.grpc.dial import SESSION_METHOD, dial, open_links
from serve_grpc.carriers.link import SESSION_MESSAGE_BYTES, Cause, Link, LinkLost
from serve_grpc.carriers.local import dial as local_dial
from serve_grpc.carriers.local.link import LocalLink
from serve_grpc.carriers.loopback import pair
from serve_grpc.config import Settings

LARGE = bytes(SESSION_MESSAGE_BYTES - 1024)
PATIENCE_S = 20.0

Ends = tuple[Link, Link]


class Accepted:
    """The end that a server's handler has, until it is closed or aborted: then the handler ends."""

    def __init__(self, context: Any) -> None:
        self._link = ServerLink(context)
        self.carrier = self._link.carrier
        self.read, self.write = self._link.read, self._link.write
        self._is_over = asyncio.Event()

    async def handle(self) -> None:
        try:
            await self._is_over.wait()
        finally:
            self._link.end_handler()

    async def abort(self, cause: Cause, reason: str) -> None:
        await self._link.abort(cause, reason)
        self._is_over.set()

    async def close(self) -> None:
        await self._link.close()
        self._is_over.set()


@contextlib.asynccontextmanager
async def in_memory() -> AsyncIterator[Ends]:
    yield pair()


@contextlib.asynccontextmanager
async def over_grpc() -> AsyncIterator[Ends]:
    accepted: asyncio.Queue[Accepted] = asyncio.Queue()

    async def handler(_: object, context: Any) -> None:
        link = Accepted(context)
        accepted.put_nowait(link)
        await link.handle()

    server = grpc.aio.server(options=server_options(Settings()))
    service, method = SESSION_METHOD[1:].split("/")
    handlers = {method: grpc.stream_stream_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = await dial(f"127.0.0.1:{port}", Settings())
    try:
        yield client, await accepted.get()
    finally:
        await client.close()
        await server.stop(0)


@contextlib.asynccontextmanager
async def over_grpc_from_the_server() -> AsyncIterator[Ends]:
    async with over_grpc() as (client, server):
        yield server, client


@contextlib.asynccontextmanager
async def over_a_socket() -> AsyncIterator[Ends]:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(1)
        client = await local_dial.dial(f"{folder}/socket", Settings())
        server = LocalLink(listener.accept()[0], is_accepted=True)
    try:
        yield client, server
    finally:
        await client.close()
        await server.close()


@contextlib.asynccontextmanager
async def over_a_socket_from_the_server() -> AsyncIterator[Ends]:
    async with over_a_socket() as (client, server):
        yield server, client


def on_uvloop(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, on the other loop."""
    uvloop = pytest.importorskip("uvloop")
    with contextlib.closing(uvloop.new_event_loop()) as loop:
        loop.run_until_complete(main)


@dataclass(frozen=True)
class Carrier:
    """A way to make a pair, and what its far end hears.

    Attributes:
        name: As links say it.
        abort_is_told: How the far end finds a link that the near one aborted: the text of LinkLost,
            or None if it reads the end of it.
    """

    connect: Callable[[], AbstractAsyncContextManager[Ends]]
    abort_is_told: str | None
    name: str
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run


CARRIERS = {
    "memory": Carrier(in_memory, "go away", "memory"),
    # gRPC's server reads an end in either case.
    "gRPC from the client": Carrier(over_grpc, None, "grpc"),
    "gRPC from the server": Carrier(
        over_grpc_from_the_server, "RESOURCE_EXHAUSTED: go away", "grpc"
    ),
    "socket from the client": Carrier(over_a_socket, "LIMIT: go away", "local"),
    "socket from the server": Carrier(over_a_socket_from_the_server, "LIMIT: go away", "local"),
    "socket on uvloop": Carrier(over_a_socket, "LIMIT: go away", "local", on_uvloop),
}


@pytest.fixture(params=CARRIERS.values(), ids=CARRIERS.keys())
def carrier(request: pytest.FixtureRequest) -> Carrier:
    carrier: Carrier = request.param
    return carrier


def on(carrier: Carrier, check: Callable[[Link, Link], Any]) -> None:
    """Run a check with the two ends of a new link."""

    async def main() -> None:
        async with carrier.connect() as (near, far):
            await asyncio.wait_for(check(near, far), PATIENCE_S)
        assert not open_links()
        assert not local_dial.open_links()

    carrier.run(main())


async def read_all(link: Link) -> list[bytes]:
    """What comes until the end in peace."""
    messages = []
    while (message := await link.read()) is not None:
        messages.append(message)
    return messages


# ------------------------------------------------------------ the contract


def test_a_link_says_what_carries_it(carrier: Carrier) -> None:
    async def check(near: Link, far: Link) -> None:
        assert near.carrier == far.carrier == carrier.name

    on(carrier, check)


def test_messages_arrive_as_they_are_in_their_order_both_ways(carrier: Carrier) -> None:
    messages = [b"", b"one", *(b"%d" % number for number in range(50))]

    async def check(near: Link, far: Link) -> None:
        async def send(link: Link) -> None:
            for message in messages:
                await link.write(message)

        async def receive(link: Link) -> list[bytes | None]:
            return [await link.read() for _ in messages]

        _, _, up, down = await asyncio.gather(send(near), send(far), receive(far), receive(near))
        assert up == down == messages

    on(carrier, check)


def test_a_large_message_arrives_whole(carrier: Carrier) -> None:
    async def check(near: Link, far: Link) -> None:
        _, arrived = await asyncio.gather(near.write(LARGE), far.read())
        assert arrived == LARGE

    on(carrier, check)


def test_a_writer_waits_while_the_other_side_reads_nothing(carrier: Carrier) -> None:
    async def check(near: Link, far: Link) -> None:
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(50):
                await near.write(LARGE)
                written += 1

        writing = asyncio.ensure_future(write())
        before = -1
        while written != before:  # until nothing has moved for a while
            before = written
            await asyncio.sleep(0.5)
        assert not writing.done()
        assert written < 25
        for _ in range(50):
            assert await far.read() == LARGE
        await writing

    on(carrier, check)


def test_what_was_written_before_the_end_is_read_and_then_the_end(carrier: Carrier) -> None:
    async def check(near: Link, far: Link) -> None:
        async def say() -> None:
            for message in (b"1", b"2", b"3"):
                await near.write(message)
            await near.close()

        # Beside each other: a carrier may have room for fewer messages than that.
        _, arrived = await asyncio.gather(say(), read_all(far))
        assert arrived == [b"1", b"2", b"3"]
        await far.close()

    on(carrier, check)


def test_after_the_end_reads_and_writes_raise(carrier: Carrier) -> None:
    async def check(near: Link, far: Link) -> None:
        await near.write(b"1")
        assert await far.read() == b"1"
        _, arrived = await asyncio.gather(near.close(), read_all(far))
        assert arrived == []
        for link in (near, far):
            for _ in range(2):
                with pytest.raises(LinkLost):
                    await link.read()
                with pytest.raises(LinkLost):
                    await link.write(b"2")

    on(carrier, check)


def test_an_abort_reaches_the_other_side_with_its_reason(carrier: Carrier) -> None:
    async def check(near: Link, far: Link) -> None:
        await near.write(b"1")
        assert await far.read() == b"1"
        reading = asyncio.ensure_future(far.read())
        await asyncio.sleep(0)
        await near.abort(Cause.LIMIT, "go away")
        if carrier.abort_is_told is None:
            assert await reading is None
        else:
            with pytest.raises(LinkLost) as raised:
                await reading
            assert raised.value.reason == str(raised.value) == carrier.abort_is_told
        for link in (near, far):
            with pytest.raises(LinkLost):
                await link.read()
            with pytest.raises(LinkLost):
                await link.write(b"2")
        with pytest.raises(LinkLost, match="go away"):
            await near.read()

    on(carrier, check)


def test_what_was_read_before_an_abort_is_not_lost(carrier: Carrier) -> None:
    """A refusal is a message, and the abort follows it."""

    async def check(near: Link, far: Link) -> None:
        await near.write(b"the refusal")
        if carrier.abort_is_told is not None:  # a gRPC client's abort overtakes what it wrote
            await near.abort(Cause.VERSION, "the status")
            assert await far.read() == b"the refusal"
            with pytest.raises(LinkLost, match="the status"):
                await far.read()

    on(carrier, check)


def test_an_abort_does_not_wait_for_a_peer_that_reads_nothing(carrier: Carrier) -> None:
    async def check(near: Link, far: Link) -> None:
        async def flood() -> None:
            while True:
                await near.write(LARGE)

        flooding = asyncio.ensure_future(flood())
        await asyncio.wait([flooding], timeout=1)
        assert not flooding.done()
        await asyncio.wait_for(near.abort(Cause.LIMIT, "go away"), 10)
        with pytest.raises(LinkLost):
            await near.read()
        flooding.cancel()
        with contextlib.suppress(asyncio.CancelledError, LinkLost):
            await flooding

    on(carrier, check)


def test_a_reader_that_waits_hears_of_an_abort_of_its_own_side(carrier: Carrier) -> None:
    async def check(near: Link, far: Link) -> None:
        reading = asyncio.ensure_future(near.read())
        await asyncio.sleep(0.05)
        await near.abort(Cause.LEFT, "enough")
        with pytest.raises(LinkLost, match="enough"):
            await reading

    on(carrier, check)


@pytest.mark.parametrize("first", ["close", "abort"])
def test_a_link_ends_once(carrier: Carrier, first: str) -> None:
    async def check(near: Link, far: Link) -> None:
        if first == "abort":
            await near.abort(Cause.LEFT, "first")
            await near.abort(Cause.LEFT, "second")
        await asyncio.gather(near.close(), far.close())
        await near.close()
        await near.abort(Cause.LEFT, "third")
        with pytest.raises(LinkLost) as raised:
            await near.read()
        assert raised.value.reason == ("first" if first == "abort" else "the link is closed")

    on(carrier, check)


def test_the_first_step_of_a_write_hands_the_message_over(carrier: Carrier) -> None:
    async def check(near: Link, far: Link) -> None:
        await near.write(b"1")  # gRPC has connected, and sent its metadata
        assert await far.read() == b"1"
        write: Any = near.write(b"2")
        with contextlib.suppress(StopIteration):
            write.send(None)
        assert await far.read() == b"2"
        # Like a write that was begun by hand and is never seen through.
        write.close()

    on(carrier, check)


# ------------------------------------------------------------ of gRPC alone


def test_a_dial_to_nobody_is_a_lost_link() -> None:
    async def main() -> None:
        link = await dial("127.0.0.1:1", Settings())
        with pytest.raises(LinkLost, match="UNAVAILABLE: "):
            await link.read()
        with pytest.raises(LinkLost, match="UNAVAILABLE: "):
            await link.write(b"1")
        assert open_links() == [link]
        await link.close()
        assert open_links() == []

    asyncio.run(main())


def test_a_link_that_never_connected_is_closed_all_the_same() -> None:
    async def main() -> None:
        accepted: list[asyncio.StreamWriter] = []
        listener = await asyncio.start_server(lambda _, to: accepted.append(to), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        link = await dial(f"127.0.0.1:{port}", Settings())
        await asyncio.sleep(0.05)
        await asyncio.wait_for(link.close(), 10)
        assert open_links() == []
        listener.close()
        for writer in accepted:
            writer.close()

    asyncio.run(main())
