"""Values, errors and waits that the transports do not treat alike."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from tests.ray.apps.gated import note, released

__all__ = ["Differing", "OverQuota", "Point", "TwoNumbers", "is_writable"]

POLL_S = 0.01


@dataclasses.dataclass
class OverQuota(Exception):
    """Its fields are all that it says."""

    used: int = 0
    limit: int = 100


class TwoNumbers(Exception):
    """Cannot be built from its `args`."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"TwoNumbers {one} and {two}")


class Point(BaseModel):
    """Refuses what is not a number."""

    x: int


def is_writable(value: np.ndarray | pd.DataFrame) -> bool:
    """Whether an item of it can be changed in place."""
    try:
        if isinstance(value, pd.DataFrame):
            value.iloc[0, 0] = 7
        else:
            value[0] = 7
    except ValueError:
        return False
    return True


def _is_released(path: str, name: str) -> bool:
    return Path(path, f"release-{name}").exists()


class Differing:
    """A few methods; those with a `path` write on a `gated.Board`."""

    async def echo(self, value: Any = None) -> Any:
        return value

    async def kind(self, value: Any) -> str:
        return type(value).__name__

    async def is_writable(self, value: Any) -> bool:
        return is_writable(value)

    async def numbers(self) -> list[int]:
        return [1, 2]

    async def length(self, value: Any) -> int:
        return len(value)

    async def blob(self, length: int) -> bytes:
        return b"x" * length

    async def hold(self, path: str, name: str) -> None:
        note(path, "start", name, 0)
        event = "cancelled"
        try:
            await released(path, name)
            event = "end"
        finally:
            note(path, event, name, 0)

    def block(self, path: str, name: str) -> None:
        """As `hold`, in a thread, which no cancel ends."""
        note(path, "start", name, 0)
        while not _is_released(path, name):
            time.sleep(POLL_S)
        note(path, "end", name, 0)

    async def stream(self, path: str, name: str) -> AsyncIterator[int]:
        """Items until the test lets it go, or the caller does."""
        try:
            number = 0
            while not _is_released(path, name):
                note(path, "item", name, number)
                yield number
                number += 1
                await asyncio.sleep(POLL_S)
        finally:
            note(path, "closed", name, 0)

    async def total(self, numbers: Any) -> int:
        return sum([number async for number in numbers])

    async def items(self, path: str, number: int) -> AsyncIterator[int]:
        for i in range(number):
            note(path, "item", str(i), 0)
            yield i

    async def die(self) -> None:
        os._exit(1)

    async def raise_quota(self) -> None:
        raise OverQuota(used=107)

    async def raise_os_error(self) -> None:
        os.stat("/no/such/file")

    async def raise_two_numbers(self) -> None:
        raise TwoNumbers(1, 2)

    async def raise_validation_error(self) -> None:
        Point(x="not a number")

    async def raise_with_a_lock(self) -> None:
        raise ValueError("holds a lock", threading.Lock())
