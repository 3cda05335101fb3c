"""Three deployments in a row: one makes values, one passes them on unopened, one reads them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

import serve_grpc
from serve_grpc.serialization import get_serializer
from tests.ray.apps.values import Keeper, make, resources, same, write_to

__all__ = ["MAKER", "MIDDLE", "READER"]


class Maker(Keeper):
    """Makes arrays as well."""

    async def full(self, number: float, size: int) -> np.ndarray:
        """An array of `size` bytes."""
        return np.full(size // 8, float(number))


class Middle:
    """Passes on what the maker returns. Args: handles of the other two."""

    def __init__(self, maker: Any, reader: Any) -> None:
        self.maker = maker.options(_by_reference=False)
        self.reader = reader.options(_by_reference=False)
        self.kept: list[Any] = []

    async def keep(self, key: str, number: float, size: int) -> None:
        """Let the reader keep an array, of which nothing is kept here."""
        await self.reader.keep.remote(key, self.maker.full.remote(number, size))

    async def total(self, number: float, size: int) -> float:
        """What the reader adds up."""
        response = self.maker.full.remote(number, size)
        return float(await self.reader.total.remote(response))

    async def is_same(self, kind: str, times: int) -> list[bool]:
        """Whether the value arrives so many times as it was made; each reader writes to it."""
        response = self.maker.new.remote(kind)
        readers = [self.reader.is_same.remote(response, kind) for _ in range(times)]
        found = [await reader for reader in readers]
        found.append(await self.reader.is_same.remote(await response, kind))
        found.append(await self.reader.is_same.remote(response, kind))
        return found

    async def resources(self) -> dict[str, Any]:
        """Of the replica's process."""
        return resources()

    async def pid(self) -> int:
        """Of the replica."""
        return os.getpid()


class Reader(Keeper):
    """Adds up arrays, and writes to them."""

    async def is_same(self, value: Any, kind: str) -> bool:
        """As of `Keeper`, but that an array which is not contiguous may arrive as one that is."""
        pickles = get_serializer("cloudpickle")
        wanted = pickles.load_response(pickles.dump_response(make(kind)))
        is_same = same(value, wanted)
        write_to(value)
        return is_same

    async def total(self, value: np.ndarray) -> float:
        """The sum."""
        total = float(value.sum())
        value[:] = -1.0
        return total


_enabled = serve_grpc.deployment(
    ray_actor_options={"num_cpus": 0.01},
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=5,
    health_check_period_s=1,
    max_ongoing_requests=100,
)
MAKER, MIDDLE, READER = _enabled(Maker), _enabled(Middle), _enabled(Reader)
