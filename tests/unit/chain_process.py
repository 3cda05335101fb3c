"""One of three processes in a row, over links without sessions: a maker, a middle and a reader.

What the maker sends, the middle passes on unopened, and the reader keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import pickle
import socket
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from serve_grpc.arguments import Pickled
from serve_grpc.carriers.link import LinkLost
from serve_grpc.carriers.local.link import LocalLink
from serve_grpc.payload import Segments, pieces
from serve_grpc.serialization import get_serializer
from serve_grpc.shared_memory import process as process_module
from serve_grpc.shared_memory.process import ProcessMemory, process_memory

__all__ = ["run"]

SIZE = 300_000
"""Bytes of an array."""
POOL_BYTES = 64 * 1024 * 1024
CLOUDPICKLE = get_serializer("cloudpickle")


class Process:
    """It. Args: sockets of both sides."""

    def __init__(self, before: socket.socket | None, behind: socket.socket | None) -> None:
        self._before = None if before is None else LocalLink(before, is_accepted=False)
        self._behind = None if behind is None else LocalLink(behind, is_accepted=False)
        self._kept: list[np.ndarray] = []
        self._lost: list[str] = []
        self._tasks = [asyncio.ensure_future(self._arrive()), asyncio.ensure_future(self._hear())]

    async def _arrive(self) -> None:
        """Take in what the one before sends, and pass it on or keep it."""
        if self._before is None:
            return
        with contextlib.suppress(LinkLost):
            while (message := await self._before.read()) is not None:
                assert self._before.memory is not None
                parts = [
                    part if isinstance(part, bytes) else self._before.memory.borrow(part)
                    for part in pickle.loads(message)
                ]
                if self._behind is None:
                    (value,), _ = CLOUDPICKLE.load_request(Segments(parts))
                    self._kept.append(value)
                    del value
                else:
                    memory = process_memory().pieces
                    passed = Pickled(Segments(parts))
                    await self._write(CLOUDPICKLE.dump_request((passed,), {}, memory))
                    del passed
                del parts, message
        self._lost.append("before")
        await self._before.close()

    async def _hear(self) -> None:
        if self._behind is None:
            return
        with contextlib.suppress(LinkLost):
            await self._behind.read()
        self._lost.append("behind")
        await self._behind.close()

    async def _write(self, payload: Any) -> None:
        assert self._behind is not None
        assert self._behind.memory is not None
        message = [
            self._behind.memory.lend(memoryview(part)) or bytes(part) for part in pieces(payload)
        ]
        with contextlib.suppress(LinkLost):
            await self._behind.write(pickle.dumps(message))

    async def send(self, number: int) -> None:
        """Send an array that is full of a number."""
        value = np.full(SIZE // 8, float(number))
        await self._write(CLOUDPICKLE.dump_response(value, process_memory().pieces))

    async def fill(self) -> None:
        """Write to whatever of this process's memory may be used again."""
        memory = process_memory().pieces
        assert memory is not None
        kept = [memory.keep(b"\xff" * SIZE) for _ in range(20)]
        assert None not in kept

    async def kept(self) -> list[list[float]]:
        """The least and the largest number of each array that was kept."""
        return [[float(value.min()), float(value.max())] for value in self._kept]

    async def write(self) -> None:
        """Write to what was kept."""
        for value in self._kept:
            value[:] = -1.0

    async def let_go(self) -> None:
        """Keep nothing."""
        self._kept.clear()

    async def state(self) -> dict[str, Any]:
        """Its pool, and which sides are lost."""
        gc.collect()
        return {**dataclasses.asdict(process_memory().statistics), "lost": self._lost}


async def _answer(sides: tuple[socket.socket | None, ...], commands: Connection) -> None:
    process = Process(*sides)
    loop = asyncio.get_running_loop()
    while True:
        try:
            name, *args = await loop.run_in_executor(None, commands.recv)
        except EOFError:
            os._exit(0)
        commands.send(await getattr(process, name)(*args))


def run(sides: tuple[socket.socket | None, ...], commands: Connection) -> None:
    """Be one of them, in a process of its own.

    Args:
        sides: To the one before and to the one behind; None for none.
        commands: Where names of methods and their arguments come, and results go.
    """
    process_module._made["memory"] = ProcessMemory(POOL_BYTES)
    asyncio.run(_answer(sides, commands))
