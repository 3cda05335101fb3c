"""Links over Unix sockets for tests: two ends, or one beside a bare socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from serve_grpc.carriers.link import SESSION_MESSAGE_BYTES
from serve_grpc.carriers.local.framing import (
    HEADER,
    MESSAGE,
    header,
)
from serve_grpc.carriers.local.link import LocalLink
from tests.descriptors import nothing_left_open

__all__ = [
    "LARGE",
    "PATIENCE_S",
    "beside_raw",
    "between",
    "message",
    "read_frames",
    "run",
    "said",
    "turns",
]

PATIENCE_S = 20.0
LARGE = bytes(SESSION_MESSAGE_BYTES)
Check = Callable[[LocalLink, LocalLink], Coroutine[Any, Any, None]]


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S))


def between(check: Check) -> None:
    """Run a check with the caller's end of a link, and the replica's."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        near = LocalLink(ours, is_accepted=False)
        far = LocalLink(theirs, is_accepted=True)
        try:
            await check(near, far)
        finally:
            await near.close()
            await far.close()
        assert ours.fileno() == theirs.fileno() == -1

    with nothing_left_open():
        run(main())


def beside_raw(check: Callable[[LocalLink, socket.socket], Coroutine[Any, Any, None]]) -> None:
    """Run a check with a link, and the bare socket of its other end, which blocks."""

    async def main() -> None:
        ours, raw = socket.socketpair()
        near = LocalLink(ours, is_accepted=False)
        raw.settimeout(PATIENCE_S)
        with raw:
            try:
                await check(near, raw)
            finally:
                await near.close()

    with nothing_left_open():
        run(main())


def said(raw: socket.socket) -> list[tuple[int, int, int, bytes]]:
    """The frames that are in a bare socket, in whole."""
    raw.setblocking(False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := raw.recv(2**20):
            data += more
    raw.settimeout(PATIENCE_S)
    frames = []
    while data:
        kind, flags, taken, length = HEADER.unpack_from(data)
        end = HEADER.size + length
        frames.append((kind, flags, taken, data[HEADER.size : end]))
        data = data[end:]
    return frames


def message(body: bytes, flags: int = 0, taken: int = 0) -> bytes:
    return header(MESSAGE, flags, taken, len(body)) + body


async def turns(count: int = 20) -> None:
    """Let the loop do all that it has to do."""
    for _ in range(count):
        await asyncio.sleep(0)


def read_frames(raw: socket.socket, count: int) -> list[tuple[int, int, int]]:
    frames = []
    with raw.makefile("rb") as stream:
        for _ in range(count):
            kind, _, taken, length = HEADER.unpack(stream.read(HEADER.size))
            frames.append((kind, taken, len(stream.read(length))))
    return frames
