"""Deployments with a request router of their own, and callers that choose replicas themselves."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve.context import _get_serve_request_context
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from tests.ray.compat.behaviours import over

__all__ = ["AnyReplica", "ByFirstArgument", "Chooser", "Named", "WhereLoaded"]


def _append(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


class ByFirstArgument(RequestRouter):
    """Sends a request to the replica whose place in the sorted list is its first argument.

    Writes down what Serve tells it, in the file of `request_router_kwargs`.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        self._path = kwargs["path"]

    def _note(self, what: str) -> None:
        _append(self._path, what)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        assert pending_request is not None
        place = pending_request.args[0] if pending_request.args else 0
        self._note(f"choose {place}")
        in_order = sorted(candidate_replicas, key=lambda r: r.replica_id.unique_id)
        return [[in_order[place % len(in_order)]]]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        self._note(f"routed {pending_request.args[0]} {replica_id.unique_id}")

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        self._note(f"completed {replica_id.unique_id}")


class AnyReplica(RequestRouter):
    """Sends requests anywhere; a deployment with it has a request router of its own."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        return [list(candidate_replicas)]


class WhereLoaded:
    """There and back again, it unpickles to the name of the thread that did so last."""

    def __init__(self, is_there: bool = False) -> None:
        self.is_there = is_there

    def __reduce__(self) -> tuple[Any, ...]:
        return (_thread_name, ()) if self.is_there else (WhereLoaded, (True,))


def _thread_name() -> str:
    return threading.current_thread().name


class Named:
    """Says who it is."""

    def __init__(self) -> None:
        self.cache = 0

    async def __call__(self, place: int = 0) -> str:
        return serve.get_replica_context().replica_id.unique_id

    async def stream(self, place: int = 0) -> AsyncIterator[str]:
        for _ in range(3):
            yield serve.get_replica_context().replica_id.unique_id

    async def fail(self, place: int = 0) -> None:
        raise ValueError(f"failed at {place}")

    async def sleep(self, place: int = 0) -> str:
        await asyncio.sleep(0.05)
        return serve.get_replica_context().replica_id.unique_id

    async def hang(self, place: int, path: str) -> None:
        _append(path, "start")
        try:
            await asyncio.Event().wait()
        finally:
            _append(path, "cancelled")

    async def pid(self, place: int = 0) -> int:
        return os.getpid()

    async def add(self, number: int) -> int:
        self.cache += number
        return self.cache

    async def session(self) -> tuple[str, str]:
        context = _get_serve_request_context()
        return serve.get_replica_context().replica_id.unique_id, context.session_id


class Chooser:
    """Calls another deployment's replicas, from inside a replica."""

    def __init__(self, named: Any) -> None:
        self.named = named

    async def choose(self, transport: str, times: int) -> list[tuple[str, str]]:
        """Replica chosen, and the one that answered."""
        handle = over(transport, self.named)
        pairs = []
        for _ in range(times):
            async with handle.choose_replica(0) as selection:
                pairs.append((selection.replica_id, await handle.dispatch(selection, 0)))
        return pairs

    async def choose_stream(self, transport: str) -> tuple[str, list[str]]:
        handle = over(transport, self.named).options(stream=True, method_name="stream")
        async with handle.choose_replica(0) as selection:
            items = [item async for item in handle.dispatch(selection, 0)]
        return selection.replica_id, items

    async def choose_and_leave(self, transport: str, times: int) -> int:
        """How many reservations were made, none of them used."""
        handle = over(transport, self.named)
        made = 0
        for _ in range(times):
            async with handle.choose_replica(0):
                made += 1
        return made

    async def reserve_all(self, transport: str, slots: int) -> list[str]:
        """Reserve every slot, then use them, while nothing else could be let in."""
        handle = over(transport, self.named)
        async with contexts(handle, slots) as selections:
            responses = [handle.dispatch(selection, 0) for selection in selections]
            return [await response for response in responses]

    async def dispatch_twice(self, transport: str) -> str:
        handle = over(transport, self.named)
        async with handle.choose_replica(0) as selection:
            await handle.dispatch(selection, 0)
            try:
                await handle.dispatch(selection, 0)
            except RuntimeError as error:
                return str(error)
        return "no error"

    async def add_everywhere(self, transport: str, number: int) -> list[int]:
        return await over(transport, self.named).broadcast("add", number).results_async()


class contexts:
    """`times` selections of a handle, all open at once."""

    def __init__(self, handle: Any, times: int) -> None:
        self._managers = [handle.choose_replica(0) for _ in range(times)]

    async def __aenter__(self) -> list[Any]:
        return [await manager.__aenter__() for manager in self._managers]

    async def __aexit__(self, *error: Any) -> None:
        for manager in self._managers:
            await manager.__aexit__(*error)
