"""Large values of many kinds, and a replica that reads them, writes to them and keeps them."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import serve_grpc
from serve_grpc.shared_memory.process import process_memory

__all__ = [
    "BUSY",
    "KEEPER",
    "KINDS",
    "OPTIONAL",
    "arrays_in",
    "make",
    "resources",
    "same",
    "write_to",
]

SIZE = 40_000
"""Numbers of an array: 320 KB, several of the smallest range in shared memory."""


@dataclasses.dataclass
class Sample:
    """An object of the user's own, with an array."""

    name: str
    image: np.ndarray


def _array(seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).random(size)


def _read_only() -> np.ndarray:
    made = _array(1)
    made.flags.writeable = False
    return made


def _structured() -> np.ndarray:
    made = np.zeros(SIZE, dtype=[("a", "i4"), ("b", "f8")])
    made["b"] = _array(2)
    return made


def _frame() -> pd.DataFrame:
    columns = {f"c{i}": _array(i) for i in range(3)}
    return pd.DataFrame({**columns, "n": np.arange(SIZE), "s": [f"row {i}" for i in range(SIZE)]})


def _twice() -> list[np.ndarray]:
    one = _array(3)
    return [one, one, one[:100]]


def _table() -> Any:
    arrow = importlib.import_module("pyarrow")
    return arrow.table({"x": _array(4), "s": [f"row {i}" for i in range(SIZE)]})


def _tensors() -> list[Any]:
    torch = importlib.import_module("torch")
    one = torch.from_numpy(_array(5))
    return [one, one[100:200], torch.zeros(0), torch.from_numpy(_array(6)).reshape(2, -1).T]


OPTIONAL = {"arrow table": "pyarrow", "torch tensors": "torch"}
"""Kinds that need a package which may be absent."""

KINDS: dict[str, Callable[[], Any]] = {
    "array": _array,
    "Fortran": lambda: np.asfortranarray(_array().reshape(200, -1)),
    "not contiguous": lambda: _array(size=3 * SIZE)[::3],
    "transposed": lambda: _array().reshape(200, -1).T[::2],
    "zero-size": lambda: np.empty((0, SIZE)),
    "structured": _structured,
    "read-only": _read_only,
    "objects": lambda: np.array([{"k": _array()}, None, "x"], dtype=object),
    "DataFrame": _frame,
    "dict of arrays": lambda: {f"k{i}": _array(i) for i in range(4)},
    "list of arrays": lambda: [_array(i, SIZE + i) for i in range(4)],
    "the same array twice": _twice,
    "many arrays of 3 KB": lambda: [_array(i, 375) for i in range(700)],
    "dataclass": lambda: Sample("x", _array(7)),
    "bytes": lambda: b"0123456789" * 100_003,
    "bytearray": lambda: bytearray(b"ab" * 500_001),
    "text": lambda: "grüße " * 100_001,
    "list of bytes": lambda: [bytes([i]) * 100_001 for i in range(7)],
    "numbers": lambda: [i / 7 for i in range(50_000)],
    "mixed": lambda: {"n": 1, "small": np.arange(5), "large": [_array(8), "x", b"y" * 90_000]},
    "arrow table": _table,
    "torch tensors": _tensors,
}


def make(kind: str) -> Any:
    """A new value, the same each time."""
    return KINDS[kind]()


def same(one: Any, other: Any) -> bool:
    """Whether both are equal, of the same types, laid out and writable alike."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        alike = one.dtype == other.dtype and one.flags.writeable == other.flags.writeable
        order = one.flags.f_contiguous == other.flags.f_contiguous or not one.flags.forc
        if one.dtype.hasobject:
            return alike and same(one.tolist(), other.tolist())
        return alike and order and bool(np.array_equal(one, other))
    if isinstance(one, pd.DataFrame):
        return bool(one.equals(other))
    if isinstance(one, Sample):
        return same(vars(one), vars(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if type(one).__module__.partition(".")[0] == "torch":
        return bool(one.equal(other))
    return bool(one == other)


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    """All arrays of a value, those it was made of included."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            yield from arrays_in(value.tolist())
        else:
            yield value
    elif isinstance(value, Sample):
        yield value.image
    elif isinstance(value, dict):
        yield from arrays_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from arrays_in(part)
    elif type(value).__module__.partition(".")[0] == "torch":
        yield value.numpy()


def write_to(value: Any) -> int:
    """Overwrite all that can be written to; returns how many arrays that were."""
    written = 0
    for array in arrays_in(value):
        if array.flags.writeable:
            array[...] = 7
            written += 1
    if isinstance(value, pd.DataFrame):
        value.iloc[:, :3] = 7.0
        written += 1
    if isinstance(value, bytearray):
        value[:] = b"7" * len(value)
        written += 1
    return written


def resources() -> dict[str, Any]:
    """What this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "fds": len(os.listdir("/proc/self/fd")),
        "pool": dataclasses.asdict(process_memory().statistics),
    }


class Keeper:
    """Keeps arguments, if it is told to."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    async def echo(self, value: Any) -> Any:
        """The argument, as it came."""
        return value

    async def echo_after(self, value: Any, work_s: float) -> Any:
        """As `echo`, after so long."""
        await asyncio.sleep(work_s)
        return value

    def echo_in_thread(self, value: Any) -> Any:
        """As `echo`."""
        return value

    async def new(self, kind: str) -> Any:
        """A value that was made here."""
        return make(kind)

    async def is_same(self, value: Any, kind: str) -> bool:
        """Whether it arrived as it was sent, to be written to."""
        is_same = same(value, make(kind))
        write_to(value)
        return is_same

    async def items(self, value: Any, count: int) -> AsyncIterator[Any]:
        """The argument so many times, with a number before each."""
        for number in range(count):
            yield number
            yield value

    def items_in_thread(self, value: Any, count: int) -> Iterator[Any]:
        """As `items`."""
        for number in range(count):
            yield number
            yield value

    async def keep(self, key: str, value: Any) -> None:
        """Keep the argument."""
        self.kept[key] = value

    async def kept_same(self, key: str, value: Any) -> bool:
        """Whether what is kept is still equal to what it was."""
        return same(self.kept[key], value)

    async def let_go(self) -> None:
        """Keep nothing any more."""
        self.kept.clear()

    async def resources(self) -> dict[str, Any]:
        """Of the replica's process."""
        return resources()

    async def pid(self) -> int:
        """Of the replica."""
        return os.getpid()


class Busy:
    """Keeps another deployment busy. Args: `keeper`, its handle."""

    def __init__(self, keeper: Any) -> None:
        self.keeper = keeper.options(_by_reference=False)

    async def keep_busy(self, at_once: int, size: int) -> None:
        """Echo large values without end, so many at once."""
        value = np.full(size // 8, 1.0)

        async def go_on() -> None:
            while True:
                await self.keeper.echo_after.remote(value, 0.01)

        await asyncio.gather(*(go_on() for _ in range(at_once)))

    async def pid(self) -> int:
        """Of the replica."""
        return os.getpid()


_enabled = serve_grpc.deployment(
    ray_actor_options={"num_cpus": 0.01},
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=5,
    health_check_period_s=1,
    max_ongoing_requests=100,
)
KEEPER, BUSY = _enabled(Keeper), _enabled(Busy)
"""To be run with `.options(...)`."""
