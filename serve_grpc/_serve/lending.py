"""How callers and a replica exchange ObjectRefs: by calls of Ray to the replica's actor.

Ray counts the references that a call's argument or result names. `exchange` runs in the replica; a
`Desk` is what it finds there. No bytes of a user's call pass here.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Collection, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.constants import SERVE_NAMESPACE

from serve_grpc.protocol.replica import ReplicaSession

__all__ = ["KEPT_S", "Desk", "ask", "exchange", "replica_actor"]

KEPT_S = 10.0
"""Seconds after a session's end in which callers may still fetch what its replies lent them."""

Visit = tuple[int, int]
"""Epoch of a session and id of a call within it."""


class Desk:
    """What a replica holds for its callers, and which of their calls run; on its main loop.

    Args:
        replica_id: Of this replica.
        loop: Its main loop.
    """

    def __init__(self, replica_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sessions: dict[int, tuple[ReplicaSession, Collection[int]]] = {}
        self._pinned: list[dict[int, Sequence[Any]]] = []
        _desks[replica_id] = self

    def __repr__(self) -> str:
        lent = sum(len(session.replies.lent) for session, _ in self._sessions.values())
        return f"<Desk {lent} replies to fetch over {len(self._sessions)} sessions>"

    def open(self, session: ReplicaSession, running: Collection[int]) -> None:
        """A session has calls; `running` are those that run, kept up to date by the owner."""
        self._sessions[session.epoch] = session, running

    def close(self, session: ReplicaSession) -> None:
        """A session is over; what it lent is kept for a while, for callers on their way."""
        if not session.replies.caller_borrows and session.replies.lent:
            # As Ray does with what leaves out of band: nobody will say when to let go.
            self._pinned.append(session.replies.lent)
        self._loop.call_later(KEPT_S, self._forget, session.epoch)

    def _forget(self, epoch: int) -> None:
        _, running = self._sessions[epoch]
        if running:  # code in a thread goes on after its cancel
            self._loop.call_later(KEPT_S, self._forget, epoch)
        else:
            del self._sessions[epoch]

    def runs(self, visit: Visit) -> bool:
        """Whether a call still runs."""
        session = self._sessions.get(visit[0])
        return session is not None and visit[1] in session[1]

    def hand_over(self, epoch: int, number: int) -> Sequence[Any]:
        """The refs of a reply; none if they were handed over, or nobody came for them in time."""
        # Taken out: from Ray's answer to this call on the caller holds them by itself.
        session = self._sessions.get(epoch)
        return session[0].replies.lent.pop(number, ()) if session is not None else ()


# By replica: `exchange` finds itself in the replica's process with nothing but its arguments.
_desks: weakref.WeakValueDictionary[str, Desk] = weakref.WeakValueDictionary()


def exchange(
    _: Any,
    replica_id: str,
    visits: Sequence[Visit | None],
    lent: Sequence[Sequence[Any]],
    wanted: Sequence[tuple[int, int]],
) -> tuple[list[bool], list[Sequence[Any]]]:
    """Give refs back and fetch others; called through Ray, at the replica's actor.

    Args:
        _: The actor itself, which `__ray_call__` puts before all others.
        replica_id: Of the replica meant.
        visits: Calls that ended; None for one that is known to run no more.
        lent: The refs that these calls lent. Ray's answer says which of them are still held here.
        wanted: Replies whose refs are fetched, by epoch of the session and number.

    Returns:
        Whether each of the calls still runs, and the refs of each of the replies.
    """
    # `lent` is not looked at: that Ray counts the arguments of its calls is all it is there for.
    desk = _desks.get(replica_id)
    if desk is None:
        return [False] * len(visits), [()] * len(wanted)
    return (
        [visit is not None and desk.runs(visit) for visit in visits],
        [desk.hand_over(*reply) for reply in wanted],
    )


def replica_actor(replica_id: str, deployment: str, application: str) -> ActorHandle:
    """The actor of a running replica. Blocks for a round trip to Ray's GCS.

    Raises:
        ValueError: It is not there any more.
        RuntimeError: This process is no longer connected to a Ray cluster.
    """
    _check_connected()
    deployment_id = DeploymentID(name=deployment, app_name=application)
    name = ReplicaID(unique_id=replica_id, deployment_id=deployment_id).to_full_id_str()
    return ray.get_actor(name, namespace=SERVE_NAMESPACE)


def ask(actor: ActorHandle, *args: Any) -> Awaitable[tuple[list[bool], list[Sequence[Any]]]]:
    """Call `exchange` at a replica's actor.

    Args:
        actor: As of `replica_actor`.
        args: Those of `exchange`, without the first.

    Raises:
        RuntimeError: This process is no longer connected to a Ray cluster.
    """
    _check_connected()
    answer: Awaitable[tuple[list[bool], list[Sequence[Any]]]]
    answer = actor.__ray_call__.remote(exchange, *args)
    return answer


def _check_connected() -> None:
    # Ray's own calls start a cluster where there is none (`_private/auto_init_hook.py`).
    if not ray.is_initialized():
        raise RuntimeError("Ray was shut down")
