"""Views of replicas for Serve's request router that look their actors up when they are used.

Serve's own view, `RunningReplica`, resolves its actor by name when it is made: one look-up in Ray's
control store for each replica of each router, on the router's loop. Calls by value need no actor.
Invariant: a look-up is made once for each view, in a thread where its user can wait, and in the
user's thread where it cannot.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray.exceptions import ActorDiedError
from ray.serve._private.common import ReplicaID
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve._private.request_router.replica_wrapper import RunningReplica

from serve_grpc._serve.replica_facts import actor_id_of

__all__ = ["LazyActor", "LazyReplica", "is_lazy_possible"]

logger = logging.getLogger(SERVE_LOGGER_NAME)


class LazyActor:
    """In the place of an actor's handle, which is looked up at the first use of one of its methods.

    Args:
        info: The replica's `RunningReplicaInfo`.
    """

    def __init__(self, info: Any) -> None:
        self._info = info
        self._handle: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.look_up(), name)

    def __repr__(self) -> str:
        return f"<LazyActor {self._info.actor_name!r}{'' if self.is_resolved else ', unresolved'}>"

    @property
    def is_resolved(self) -> bool:
        """Whether no look-up is needed any more."""
        return self._handle is not None

    def look_up(self) -> Any:
        """The handle; from any thread, which waits for Ray's control store the first time.

        Raises:
            ActorDiedError: There is no such actor, or no more.
        """
        if self._handle is None:
            try:
                self._handle = self._info.get_actor_handle()
            except ValueError as error:
                # Where Serve looks actors up for a list it says the same, and leaves the replica
                # out until the next list. With this error it does so where the actor is used.
                _say_missing(self._info.replica_id)
                raise ActorDiedError from error
        return self._handle

    @property
    def _actor_id(self) -> Any:
        """Id of the actor, None if nobody knows; a replica with an endpoint has published its own.

        Serve's router asks for it beside each request, whatever carries it.
        """
        if self._handle is None and (published := actor_id_of(self._info)):
            return _actor_id(published)
        try:
            return self.look_up()._actor_id
        except ActorDiedError:
            return None  # Serve takes an error from nobody known as this replica's


def _say_missing(replica_id: ReplicaID) -> None:
    logger.warning(
        f"Failed to get handle to replica {replica_id}. The replica actor may have died. "
        "Skipping this replica."
    )


def _actor_id(published: str) -> Any:
    try:
        return ray.ActorID(bytes.fromhex(published))
    except ValueError:
        return None


class _LazyInfo:
    """What a `RunningReplica` is made from: an info whose actor is a lazy one."""

    def __init__(self, info: Any, actor: LazyActor) -> None:
        self._info = info
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._info, name)

    def get_actor_handle(self) -> LazyActor:
        return self._actor


class LazyReplica(RunningReplica):
    """Serve's view of a replica of Python code, with a lazy actor; on the router's loop.

    Args:
        info: The replica's `RunningReplicaInfo`.
    """

    def __init__(self, info: Any) -> None:
        actor = LazyActor(info)
        super().__init__(_LazyInfo(info, actor))
        self._replica_info = info
        self._actor = actor
        self._looking_up: asyncio.Future[Any] | None = None

    @property
    def is_resolved(self) -> bool:
        """Whether its actor has been looked up."""
        return self._actor.is_resolved

    async def resolve(self) -> None:
        """Look its actor up in a thread; once, however many wait.

        Raises:
            ActorDiedError: As of `LazyActor.look_up`.
        """
        if self.is_resolved:
            return
        if self._looking_up is None:
            loop = asyncio.get_running_loop()
            self._looking_up = loop.run_in_executor(None, self._actor.look_up)
            self._looking_up.add_done_callback(self._on_looked_up)
        # Shielded: one that is cancelled must not take it from the others.
        await asyncio.shield(self._looking_up)

    def _on_looked_up(self, done: asyncio.Future[Any]) -> None:
        self._looking_up = None
        if not done.cancelled():
            done.exception()  # looked at, for those that wait may all have given up

    async def get_queue_len(self, *, deadline_s: float) -> int:
        """As Serve's."""
        await self.resolve()
        length: int = await super().get_queue_len(deadline_s=deadline_s)
        return length

    async def reserve_slot(self, request_metadata: Any) -> Any:
        """As Serve's."""
        await self.resolve()
        return await super().reserve_slot(request_metadata)

    async def release_slot(self, slot_token: str) -> int:
        """As Serve's."""
        await self.resolve()
        ongoing: int = await super().release_slot(slot_token)
        return ongoing


def is_lazy_possible() -> bool:
    """Whether this Ray's `RunningReplica` gets its actor where `LazyReplica` gives it another."""
    return "get_actor_handle" in RunningReplica.__init__.__code__.co_names
