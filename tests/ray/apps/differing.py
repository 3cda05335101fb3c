"""Handlers that show what the transports do differently."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.ray.apps.gated import POLL_S, note, released

__all__ = ["Differing"]


class Differing:
    """One method for each difference; notes and signals are those of a `Board`."""

    async def kinds(self, *values: Any) -> list[str]:
        return [type(value).__name__ for value in values]

    async def is_writable(self, array: Any) -> bool:
        return bool(array.flags.writeable)

    async def echo(self, value: Any) -> Any:
        return value

    async def wait(self, path: str, name: str) -> str:
        note(path, "start", name, 0)
        try:
            await released(path, name)
        except asyncio.CancelledError:
            note(path, "cancelled", name, 0)
            raise
        note(path, "end", name, 0)
        return name

    def wait_in_thread(self, path: str, name: str) -> str:
        note(path, "start", name, 0)
        while not Path(path, f"release-{name}").exists():
            time.sleep(POLL_S)
        return name

    async def items(self, path: str, number: int) -> AsyncIterator[int]:
        for i in range(number):
            note(path, "item", str(i), 0)
            yield i

    async def missing_file(self) -> None:
        raise FileNotFoundError(2, "no such file", "somewhere")

    async def fail_with_a_lock(self) -> None:
        raise ValueError(threading.Lock())

    async def die(self) -> None:
        os._exit(1)
