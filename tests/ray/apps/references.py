"""A deployment that gets, keeps, gives and passes on ObjectRefs and handles of actors."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray._private.worker import global_worker
from ray.serve.context import _get_global_client

import serve_grpc

__all__ = [
    "SMALL",
    "Box",
    "BoxError",
    "Counter",
    "Lending",
    "Sender",
    "is_known",
    "known",
    "large",
    "lending_app",
    "new_actor",
    "value_of",
]

SMALL: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0.01}}
LENGTH = 100_000
"""Of an array that Ray puts into shared memory."""


@dataclass
class Box:
    """Holds a ref, in a way that only cloudpickle and pickle know."""

    content: Any


class BoxError(Exception):
    """An exception that holds a ref."""

    def __init__(self, content: Any) -> None:
        super().__init__("with a ref")
        self.content = content

    def __reduce__(self) -> tuple[Any, ...]:
        return BoxError, (self.content,)


@ray.remote(num_cpus=0.01)
class Counter:
    """An actor that is alive or not."""

    def pid(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0.01)
class Sender:
    """A process that calls a deployment by value. Args: `handle`, to it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.held: Any = None

    def call(self, method: str, *args: Any) -> Any:
        """Call and wait."""
        return self.handle.options(method_name=method).remote(*args).result(timeout_s=30)

    def start(self, method: str, *args: Any) -> None:
        """Call, and hold the response."""
        self.held = self.handle.options(method_name=method).remote(*args)

    def hold(self, method: str, *args: Any) -> int:
        """Call, and hold the result."""
        self.held = self.call(method, *args)
        return asyncio.run(value_of(self.held))

    def knows(self, ref_hex: str) -> bool:
        """Whether this process counts references to the object."""
        return is_known(ref_hex)


def large() -> ray.ObjectRef:
    """A ref to an array in shared memory."""
    return ray.put(np.ones(LENGTH))


def new_actor() -> tuple[Any, int]:
    """An actor's handle, and its process."""
    actor = Counter.remote()
    return actor, ray.get(actor.pid.remote(), timeout=60)


def known() -> set[str]:
    """Objects that this process counts references to, by their hex; without the answers that Serve
    awaits of its controller, which come and go."""
    gc.collect()
    controller = _get_global_client()._controller._actor_id.hex()
    names = {name.decode() for name in global_worker.core_worker.get_all_reference_counts()}
    return {name for name in names if controller not in name}


def is_known(ref_hex: str) -> bool:
    """Whether this process counts references to the object."""
    return ref_hex in known()


def _found(box: Any) -> Any:
    while not isinstance(box, (ray.ObjectRef, ray.actor.ActorHandle)):
        if isinstance(box, dict):
            (box,) = box.values()
        else:
            box = box.content if isinstance(box, (Box, BoxError)) else box[0]
    return box


async def value_of(box: Any) -> int:
    """Length of the array, or process of the actor, that is in there somewhere."""
    found = _found(box)
    if isinstance(found, ray.ObjectRef):
        return len(await found)
    return int(await found.pid.remote())


class Lending:
    """Args: `other`, another one of these; None for the last one."""

    def __init__(self, other: Any = None) -> None:
        self.other = None if other is None else other.options(_by_reference=False)
        self.kept: dict[str, Any] = {}

    # ------------------------------------------------------------ arguments

    async def take(self, box: Any) -> int:
        """Do nothing with it. Returns its own process."""
        return os.getpid()

    async def read(self, *boxes: Any, **named: Any) -> int:
        return await value_of([*boxes, *named.values()][0])

    async def keep(self, key: str, box: Any) -> int:
        self.kept[key] = box
        return await value_of(box)

    async def use(self, key: str) -> int:
        return await value_of(self.kept[key])

    def drop(self, key: str) -> None:
        del self.kept[key]

    async def fail(self, box: Any) -> None:
        raise ValueError(await value_of(box))

    async def hang(self, box: Any, path: str) -> None:
        self._note(path, await value_of(box))
        await asyncio.Event().wait()

    def read_late(self, box: Any, path: str) -> None:
        """Runs on in its thread when it is cancelled; reads once it is told to."""
        self._note(path + ".started", 0)
        while not Path(path + ".go").exists():
            time.sleep(0.01)
        self._note(path, len(ray.get(_found(box), timeout=20)))

    def _note(self, path: str, value: int) -> None:
        written = Path(path + ".written")
        written.write_text(str(value))
        written.rename(path)

    async def read_items(self, box: Any) -> AsyncIterator[int]:
        for _ in range(3):
            yield await value_of(box)

    # ------------------------------------------------------------ results

    async def give(self, kind: str = "object") -> Any:
        return {"box": [large() if kind == "object" else Counter.remote()]}

    def make(self, key: str) -> None:
        """Keep an actor of its own."""
        self.kept[key] = [Counter.remote()]

    async def give_own(self, key: str) -> Any:
        """What it keeps."""
        return self.kept[key]

    async def give_large(self) -> Any:
        """A ref beside a payload that travels in fragments."""
        return [large(), os.urandom(1_000_000)]

    async def give_items(self, number: int) -> AsyncIterator[Any]:
        for _ in range(number):
            yield [large()]

    def give_items_in_thread(self, number: int) -> Iterator[Any]:
        for _ in range(number):
            yield [large()]

    async def raise_box(self) -> None:
        raise BoxError([large()])

    # ------------------------------------------------------------ chains

    async def pass_on(self, method: str, *args: Any) -> Any:
        """Call the other one with what came, opened."""
        return await self.other.options(method_name=method).remote(*args)

    async def pass_unopened(self, method: str, *args: Any) -> Any:
        """Give the other one a response of its own, unopened, to read."""
        return await self.other.read.remote(self.other.give.remote())

    # ------------------------------------------------------------ what is left

    def known(self) -> list[str]:
        return list(known())

    def lent(self) -> str:
        """What the replica holds for its callers."""
        from serve_grpc._serve.lending import _desks

        (desk,) = _desks.values()
        return repr(desk)


def lending_app() -> Any:
    """Two of them, the first one with a handle to the second."""
    last = serve_grpc.deployment(Lending, name="Last", **SMALL).bind()
    return serve_grpc.deployment(Lending, name="First", **SMALL).bind(last)
