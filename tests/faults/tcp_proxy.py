"""A TCP proxy for the network between a caller and a replica, and the weather on it.

It runs on a loop in a thread of its own. `weather` may be replaced at any time and holds for bytes
that pass from then on, in both directions; `cut` breaks what is open with a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from serve_grpc import DeploymentHandle, handle_statistics
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.carriers.grpc.dial import dial as dial_grpc
from serve_grpc.carriers.link import Link
from serve_grpc.config import Settings
from tests.faults.calls import LoopThread, loop_thread

__all__ = ["Network", "TcpProxy", "Weather", "proxied"]

CHUNK_BYTES = 64 * 1024
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Weather:
    """What happens to bytes on their way.

    Attributes:
        delay_s: Added to each, without slowing the flow.
        bytes_per_s: Of each connection and direction; 0 for no limit.
        slice_bytes: Longest segment, of 1 to so many bytes; 0 for as they come.
        is_black_hole: Nothing passes, and nobody is told.
        refuses: New connections are reset at once.
    """

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    slice_bytes: int = 0
    is_black_hole: bool = False
    refuses: bool = False


FAIR = Weather()


class _Flow:
    """One direction of one connection."""

    def __init__(self, link: _Link, reader: Any, writer: Any, *, is_up: bool) -> None:
        self.link = link
        self.reader, self.writer = reader, writer
        self.is_up = is_up
        self.passed = 0
        self._rng = random.Random(0)

    async def run(self) -> None:
        """Carry bytes until one side closes or the link is cut."""
        loop = asyncio.get_running_loop()
        proxy = self.link.proxy
        on_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def take() -> None:
            while data := await self.reader.read(CHUNK_BYTES):
                await proxy.until_clear()
                await on_way.put((loop.time() + proxy.weather.delay_s, data))
            await on_way.put((0.0, b""))

        taking = asyncio.create_task(take())
        try:
            while True:
                due_s, data = await on_way.get()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                if not data:
                    return
                await proxy.until_clear()
                await self._send(data)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            weather, size = self.link.proxy.weather, len(view)
            if weather.slice_bytes:
                size = self._rng.randint(1, weather.slice_bytes)
            if self.link.proxy.cut_up_to is not None and self.is_up is self.link.proxy.cut_is_up:
                size = min(size, self.link.proxy.cut_up_to)
                self.link.proxy.cut_up_to -= min(size, len(view))
            self.writer.write(view[:size])
            await self.writer.drain()
            self.passed += len(view[:size])
            view = view[size:]
            if self.link.proxy.cut_up_to == 0:
                self.link.proxy.cut_up_to = None
                self.link.cut()
                return
            if weather.bytes_per_s:
                await asyncio.sleep(size / weather.bytes_per_s)


class _Link:
    """One connection through the proxy: two sockets, two flows."""

    def __init__(self, proxy: TcpProxy, to_caller: Any, to_replica: Any) -> None:
        self.proxy = proxy
        self.writers = (to_caller[1], to_replica[1])
        for writer in self.writers:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            writer.transport.set_write_buffer_limits(high=CHUNK_BYTES)
        self.flows = (
            _Flow(self, to_caller[0], to_replica[1], is_up=True),
            _Flow(self, to_replica[0], to_caller[1], is_up=False),
        )

    async def run(self) -> None:
        """Until either side is done."""
        tasks = [asyncio.create_task(flow.run()) for flow in self.flows]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self.writers:
                writer.close()

    def cut(self) -> None:
        """Reset both sides."""
        for writer in self.writers:
            with contextlib.suppress(OSError, AttributeError):
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()


class TcpProxy:
    """Listens on a port of its own and passes on to `target`. Methods are for any thread.

    Attributes:
        address: Where it listens, "host:port".
        weather: What happens to bytes now.
        accepted_s: When each connection was accepted, on the monotonic clock.
    """

    def __init__(self, thread: LoopThread, target: str) -> None:
        self.target = target
        self.weather = FAIR
        self.accepted_s: list[float] = []
        self.cut_up_to: int | None = None
        self.cut_is_up = True
        self._thread = thread
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clear = asyncio.Event()
        self._clear.set()
        self.address = thread.start(self._listen()).result(10)

    async def _listen(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=CHUNK_BYTES)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _accept(self, reader: Any, writer: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        link = None
        try:
            if not self.weather.refuses:
                self.accepted_s.append(asyncio.get_running_loop().time())
                host, _, port = self.target.rpartition(":")
                to_replica = await asyncio.open_connection(host, int(port), limit=CHUNK_BYTES)
                link = _Link(self, (reader, writer), to_replica)
                self._links.add(link)
                await link.run()
        except (OSError, asyncio.CancelledError):
            pass  # the replica is gone, or the proxy ends
        finally:
            if link is None:
                _reset(writer)
            else:
                self._links.discard(link)

    async def until_clear(self) -> None:
        """Return when bytes may pass."""
        await self._clear.wait()

    # ------------------------------------------------------------ any thread

    def set(self, **changes: Any) -> None:
        """Change the weather, from fair; without arguments it is fair, and nothing is cut."""

        async def change() -> None:
            self.weather = replace(FAIR, **changes)
            self.cut_up_to = None
            self._clear.clear() if self.weather.is_black_hole else self._clear.set()

        self._thread.start(change()).result(10)

    def cut(self) -> int:
        """Reset every connection; returns how many there were."""

        async def cut() -> int:
            links = tuple(self._links)
            for link in links:
                link.cut()
            return len(links)

        return self._thread.start(cut()).result(10)

    def cut_after(self, passed_bytes: int, *, is_up: bool) -> None:
        """Reset the connection on which so many more bytes have passed in one direction."""

        async def arm() -> None:
            self.cut_up_to, self.cut_is_up = passed_bytes, is_up

        self._thread.start(arm()).result(10)

    def passed(self) -> tuple[int, int]:
        """Bytes that passed on open connections: to the replica, to the caller."""

        async def passed() -> tuple[int, int]:
            ups = sum(link.flows[0].passed for link in self._links)
            return ups, sum(link.flows[1].passed for link in self._links)

        return self._thread.start(passed()).result(10)

    def close(self) -> None:
        """Stop listening, and reset what is open."""

        async def close() -> None:
            self._server.close()
            self.weather = FAIR
            self._clear.set()
            for link in tuple(self._links):
                link.cut()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=8)

        self._thread.start(close()).result(10)


def _reset(writer: Any) -> None:
    with contextlib.suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


class Network:
    """The proxies between this process and the replicas it opens sessions to.

    Attributes:
        proxies: By the replica's own address.
    """

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self.proxies: dict[str, TcpProxy] = {}

    def proxy(self, address: str) -> TcpProxy:
        """The one before a replica."""
        proxy = self.proxies.get(address)
        if proxy is None:
            proxy = self.proxies[address] = TcpProxy(self._thread, address)
        return proxy

    def before(self, handle: DeploymentHandle[Any]) -> TcpProxy:
        """The one before the only replica of a deployment that was called."""
        (replica,) = handle_statistics(handle).replicas
        return self.proxies[replica.address]

    def set(self, **changes: Any) -> None:
        """The weather everywhere."""
        for proxy in tuple(self.proxies.values()):
            proxy.set(**changes)


@contextlib.contextmanager
def proxied() -> Iterator[Network]:
    """Sessions that this process opens in the meantime go through proxies."""
    with loop_thread() as thread:
        network = Network(thread)

        async def dial_through_proxy(address: str, settings: Settings) -> Link:
            return await dial_grpc(network.proxy(address).address, settings)

        try:
            with dialling_by(dial_through_proxy):
                yield network
        finally:
            for proxy in network.proxies.values():
                proxy.close()
