"""A replica that can be reached by its Unix socket only, and who stands at that door."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from serve_grpc.carriers.host import SessionHost
from serve_grpc.carriers.link import SESSION_MESSAGE_BYTES
from serve_grpc.carriers.local.dial import dial, open_links
from serve_grpc.carriers.local.framing import (
    ABORT,
    HEADER,
    read_abort,
)
from serve_grpc.carriers.local.serve import LocalServer
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from tests.behaviour.serving import Echo
from tests.descriptors import nothing_left_open
from tests.ray.waiting import eventually_async
from tests.unit.pump_ends import Caller
from tests.unit.sessions import REPLICA_ID, SECRET

__all__ = ["PATIENCE_S", "Door", "Raw", "attack"]

PATIENCE_S = 60.0


class Door:
    """A replica that can be reached by its socket only."""

    def __init__(self, path: str, **settings: Any) -> None:
        self.path = path
        self.echo = Echo()
        self.host = SessionHost(
            replica_id=REPLICA_ID,
            secrets=ClusterSecrets(lambda: (SECRET,), (SECRET,)),
            settings=Settings(**settings),
            dispatcher=self.echo,
            largest_message=SESSION_MESSAGE_BYTES,
        )
        self.server = LocalServer(self.host, Settings(**settings))
        self.server.start(path)

    async def member(self) -> Caller:
        """A caller of the package, let in."""
        return await Caller(lambda _, settings: dial(self.path, settings)).opened()

    async def works(self) -> None:
        """Members are let in and answered, whatever others do."""
        member = await self.member()
        member.ask("call", b"payload")
        await eventually_async(lambda: member.answers == {"call": b"payload"})
        member.pump.cancel()
        await member.pump.wait_closed()


class Raw:
    """Somebody at the door with a bare socket."""

    def __init__(self, door: Door) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.setblocking(False)
        self.sock.connect(door.path)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def hears(self) -> bytes:
        """All that comes until the replica ends the link."""
        heard = b""
        with contextlib.suppress(ConnectionError):
            while more := await asyncio.get_running_loop().sock_recv(self.sock, 2**20):
                heard += more
        return heard

    async def is_told(self) -> str:
        """Why the replica ended the link; that it says, and nothing else."""
        heard = await self.hears()
        kind, _, _, length = HEADER.unpack_from(heard)
        assert (kind, length) == (ABORT, len(heard) - HEADER.size)
        return read_abort(heard[HEADER.size :])


def attack(path: Path, check: Callable[[Door], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Run it; nothing is left of it afterwards, and the door still works in the end."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Door]:
        door = Door(str(path / "socket"), **settings)
        try:
            yield door
        finally:
            await door.server.stop()

    async def main() -> None:
        async with opened() as door:
            await check(door)
            await eventually_async(lambda: door.host.unproven.count == 0)
            await door.works()
            await eventually_async(lambda: not door.server._serving)
            assert not door.host.sessions
        assert not open_links()

    with nothing_left_open():
        asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert os.listdir(path) == []
