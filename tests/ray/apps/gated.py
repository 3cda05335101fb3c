"""Handlers that stay until a test lets them go, and write down what happens to them.

The notes are lines of a file and the signal is a file, so both work while a replica is full, and
outlive one that is killed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

__all__ = ["Board", "Gated", "note", "released"]

POLL_S = 0.01


class Board:
    """The test's side. Args: `path`, an empty directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def lines(self, event: str, name: str = "") -> list[list[str]]:
        """Notes of this event: [event, name, pid, running]."""
        try:
            text = Path(self.path, "log").read_text()
        except FileNotFoundError:
            return []
        notes = [line.split() for line in text.splitlines()]
        return [n for n in notes if n[0] == event and (not name or n[1] == name)]

    def count(self, event: str, name: str = "") -> int:
        """How often it happened."""
        return len(self.lines(event, name))

    @property
    def most_running(self) -> int:
        """The most handlers that ran at once on one replica."""
        return max((int(n[3]) for n in self.lines("start")), default=0)

    def release(self, name: str = "all") -> None:
        """Let the handlers of this name go, now and later."""
        Path(self.path, f"release-{name}").touch()


def note(path: str, event: str, name: str, running: int) -> None:
    """Write a line that the test's `Board(path)` reads."""
    with open(f"{path}/log", "a") as file:
        file.write(f"{event} {name} {os.getpid()} {running}\n")


async def released(path: str, name: str) -> None:
    """Return when the test lets the handlers of this name go."""
    # The signal comes from another process, through the file system.
    signals = [Path(path, f"release-{which}") for which in ("all", name)]
    while not any(map(Path.exists, signals)):  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


class Gated:
    """The deployment's side. Args: `inner`, a handle to call in turn."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner.options(_by_reference=False) if inner is not None else None
        self.running = 0

    def _note(self, path: str, event: str, name: str) -> None:
        note(path, event, name, self.running)

    async def __call__(self, path: str, name: str = "x") -> str:
        self.running += 1
        self._note(path, "start", name)
        event = "cancelled"
        try:
            await released(path, name)
            event = "end"
        finally:
            self.running -= 1
            self._note(path, event, name)
        return name

    async def stream(self, path: str, name: str = "x") -> AsyncIterator[int]:
        yield 1
        await self(path, name)
        yield 2

    async def outer(self, path: str, name: str = "x") -> str:
        self._note(path, "outer-start", name)
        try:
            return await self.inner.remote(path, name)
        except asyncio.CancelledError:
            self._note(path, "outer-cancelled", name)
            raise

    async def pid(self) -> int:
        return os.getpid()
