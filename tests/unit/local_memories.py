"""Two ends of a local link that share memory, for tests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from serve_grpc.carriers.local.link import LocalLink
from serve_grpc.shared_memory.process import ProcessMemory

__all__ = ["MIB", "POOL_BYTES", "SIZE", "between", "lent", "linked", "piece", "reading", "until"]

SIZE = 100_000
MIB = 1024 * 1024
POOL_BYTES = 64 * MIB


def piece(process: ProcessMemory, fill: bytes = b"x", size: int = SIZE) -> memoryview:
    assert process.pieces is not None
    kept = process.pieces.keep(fill * size)
    assert kept is not None
    return kept


async def linked(check: Callable[[LocalLink, LocalLink], Awaitable[None]]) -> None:
    a, b = socket.socketpair(socket.AF_UNIX)
    near, far = LocalLink(a, is_accepted=False), LocalLink(b, is_accepted=False)
    try:
        await check(near, far)
    finally:
        await near.close()
        await far.close()


def between(check: Callable[[LocalLink, LocalLink], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(linked(check), 20))


async def lent(near: LocalLink, far: LocalLink, part: memoryview) -> memoryview:
    """Lend a piece, tell of it in a message, and borrow it at the other end."""
    assert near.memory is not None
    assert far.memory is not None
    place = near.memory.lend(part)
    assert place is not None
    _, message = await asyncio.gather(near.write(b"it is there"), far.read())
    assert message == b"it is there"
    return far.memory.borrow(place)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.001)


def reading(link: LocalLink) -> asyncio.Task[bytes | None]:
    """Frames about memory are read beside messages."""
    return asyncio.ensure_future(link.read())
