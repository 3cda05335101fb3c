"""What is called, and who calls: plain deployments, opted in or not as `on_serve/sides.py` has it.

Every answer is checked. A caller's method is one measurement: it returns a rate, or seconds.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from bench.on_serve.sides import Replica, check_own_side, new_handle
from bench.plan.contenders import parse
from bench.request_streams.memory import resident_mib, settled

__all__ = ["HOPS", "BareEcho", "Caller", "Sink"]

UPLOADS, CHUNKS, CHUNK = 50, 100, b"x" * 20_000
PIPELINED = 10
"""Calls of one upload that are under way together, where each chunk is a call."""
PINGS, PING = 1000, b"p" * 100
RELAYS, TOKENS, TOKEN = 100, 1000, "token"
FIRSTS = 50
UNREAD = 100
HOPS = "Sink", "Second", "Third"
ECHO = "/bench.Bare/Echo"


class Sink(Replica):
    """What is called."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner
        self.may_read = asyncio.Event()

    async def resident_mib(self) -> float:
        """Memory of this process."""
        return resident_mib()

    async def hold(self, chunks: Any) -> int:
        """As `upload`, but nothing is read before `release`."""
        await self.may_read.wait()
        return await self.upload(chunks)

    async def release(self) -> None:
        """All that are held go on."""
        self.may_read.set()
        self.may_read = asyncio.Event()

    async def take(self, chunk: bytes) -> int:
        """One chunk."""
        return len(chunk)

    async def upload(self, chunks: Any) -> int:
        """All chunks of a stream."""
        return sum([len(chunk) async for chunk in chunks])

    async def relay(self, items: Any) -> AsyncIterator[Any]:
        """What comes, as it comes."""
        async for item in items:
            yield item

    async def tokens(self, count: int) -> AsyncIterator[str]:
        """Items of its own."""
        for _ in range(count):
            yield TOKEN

    async def nested_tokens(self, hops: int, count: int) -> AsyncIterator[str]:
        """The same by hand: taken from the next deployment item by item, and yielded again."""
        if not hops:
            for _ in range(count):
                yield TOKEN
            return
        inner = self.inner.options(stream=True, _by_reference=False).nested_tokens
        async for token in inner.remote(hops - 1, count):
            yield token


class BareEcho:
    """A floor: a bidirectional stream of grpc.aio, without Serve's or our machinery."""

    def __init__(self) -> None:
        self._server: Any = None

    async def start(self) -> str:
        """Its address."""
        if self._server is None:
            handler = grpc.stream_stream_rpc_method_handler(_echo)
            service, method = ECHO.strip("/").split("/")
            self._server = grpc.aio.server()
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {method: handler}),)
            )
            self._port = self._server.add_insecure_port("127.0.0.1:0")
            await self._server.start()
        return f"127.0.0.1:{self._port}"


async def _echo(requests: Any, context: Any) -> None:
    async for request in requests:
        await context.write(request)


class Caller:
    """Makes the load of one case, once, over the transport that a contender names."""

    async def uploads_in_calls(self, contender: str, app: str) -> float:
        """Chunks a second, where each is a call to the one replica."""
        check_own_side(parse(contender).side)
        take = new_handle(parse(contender), HOPS[0], app).take

        async def upload() -> None:
            waiting: set[Any] = set()
            for _ in range(CHUNKS):
                if len(waiting) == PIPELINED:
                    done, waiting = await asyncio.wait(waiting, return_when="FIRST_COMPLETED")
                    _check(all(task.result() == len(CHUNK) for task in done))
                waiting.add(asyncio.ensure_future(_result(take.remote(CHUNK))))
            _check(all(size == len(CHUNK) for size in await asyncio.gather(*waiting)))

        return await _rate(UPLOADS * CHUNKS, *(upload() for _ in range(UPLOADS)))

    async def uploads(self, contender: str, app: str) -> float:
        """Chunks a second, where an upload is one call with a stream."""
        handle = new_handle(parse(contender), HOPS[0], app).upload

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(CHUNKS):
                yield CHUNK

        async def upload() -> None:
            _check(await handle.remote(chunks()) == CHUNKS * len(CHUNK))

        return await _rate(UPLOADS * CHUNKS, *(upload() for _ in range(UPLOADS)))

    async def unread(self, contender: str, app: str) -> tuple[float, float]:
        """MiB that each of many uploads costs here, and at its replica, while nobody reads it."""
        sink = new_handle(parse(contender), HOPS[0], app)
        made = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal made
            for _ in range(CHUNKS):
                made += 1
                yield CHUNK

        here_mib, there_mib = resident_mib(), await sink.resident_mib.remote()
        uploads = [sink.hold.remote(chunks()) for _ in range(UNREAD)]
        _check(await settled(lambda: made) < UNREAD * CHUNKS)
        there_mib = await sink.resident_mib.remote() - there_mib
        here_mib = resident_mib() - here_mib
        await sink.release.remote()
        for upload in uploads:
            _check(await upload == CHUNKS * len(CHUNK))
        return here_mib / UNREAD, there_mib / UNREAD

    async def pings(self, contender: str, app: str) -> float:
        """Round trips a second of one stream in both directions."""
        handle = new_handle(parse(contender), HOPS[0], app).options(stream=True).relay
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        async def pings() -> AsyncIterator[bytes]:
            for _ in range(PINGS):
                yield PING
                await answers.get()

        async def play() -> None:
            async for answer in handle.remote(pings()):
                _check(answer == PING)
                answers.put_nowait(answer)

        return await _rate(PINGS, play())

    async def bare_pings(self, address: str) -> float:
        """The same over grpc.aio alone."""
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.stream_stream(ECHO)()

            async def play() -> None:
                for _ in range(PINGS):
                    await call.write(PING)
                    _check(await call.read() == PING)
                await call.done_writing()

            return await _rate(PINGS, play())

    async def first_items(self, contender: str, app: str) -> tuple[float, float]:
        """Seconds until the first item came through three hops, and of three calls; medians."""
        relays = [hop.options(stream=True).relay for hop in _hops(contender, app)]
        take = new_handle(parse(contender), HOPS[0], app).take
        relayed, lone = [], []
        for _ in range(FIRSTS):
            begin_s = time.perf_counter()
            items = _one(TOKEN)
            for relay in relays:
                items = relay.remote(items)
            _check(await anext(items) == TOKEN)
            relayed.append(time.perf_counter() - begin_s)
            _check([item async for item in items] == [])
            begin_s = time.perf_counter()
            for _ in range(3):
                _check(await take.remote(PING) == len(PING))
            lone.append(time.perf_counter() - begin_s)
        return statistics.median(relayed), statistics.median(lone)

    async def relays(self, contender: str, app: str) -> float:
        """Tokens a second of many relays through three hops, which this caller passes on."""
        first, second, third = (hop.options(stream=True) for hop in _hops(contender, app))

        def chain() -> Any:
            return third.relay.remote(second.relay.remote(first.tokens.remote(TOKENS)))

        return await _rate(RELAYS * TOKENS, *(_drain(chain()) for _ in range(RELAYS)))

    async def relays_by_hand(self, contender: str, app: str) -> float:
        """The same, where this caller takes each item and yields it again."""
        first, second, third = (hop.options(stream=True) for hop in _hops(contender, app))

        async def by_hand(items: Any) -> AsyncIterator[Any]:
            async for item in items:
                yield item

        def chain() -> Any:
            tokens = by_hand(first.tokens.remote(TOKENS))
            return third.relay.remote(by_hand(second.relay.remote(tokens)))

        return await _rate(RELAYS * TOKENS, *(_drain(chain()) for _ in range(RELAYS)))

    async def nested(self, contender: str, app: str) -> float:
        """Tokens a second of three deployments that call one another and yield again."""
        handle = new_handle(parse(contender), HOPS[0], app).options(stream=True).nested_tokens
        streams = (_drain(handle.remote(2, TOKENS)) for _ in range(RELAYS))
        return await _rate(RELAYS * TOKENS, *streams)


def _hops(contender: str, app: str) -> list[Any]:
    return [new_handle(parse(contender), hop, app) for hop in HOPS]


async def _one(item: Any) -> AsyncIterator[Any]:
    yield item


async def _result(response: Any) -> Any:
    return await response


async def _drain(items: Any) -> None:
    _check([item async for item in items] == [TOKEN] * TOKENS)


async def _rate(count: int, *work: Any) -> float:
    begin_s = time.perf_counter()
    await asyncio.gather(*work)
    return count / (time.perf_counter() - begin_s)


def _check(is_right: bool) -> None:
    if not is_right:
        raise RuntimeError("a wrong answer")
