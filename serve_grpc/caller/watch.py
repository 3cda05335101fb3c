"""Whether Serve is still there, looked at while somebody waits for it.

Once Serve was shut down no news of a deployment come any more, and nothing else would wake who
waits for a replica. On the router's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve_grpc._serve.routers import RouterAccess
from serve_grpc.caller.replicas import Replicas
from serve_grpc.transport.mailbox import mailbox_of

__all__ = ["ServeWatch"]

LOOK_S = 1.0


class ServeWatch:
    """For one router.

    Args:
        access: To Serve's router.
        replicas: While one of them answers, it moves who waits, Serve or not.
        is_needed: Whether calls wait.
        on_gone: Called when Serve is gone while they do, and no replica answers.
    """

    def __init__(
        self,
        access: RouterAccess,
        replicas: Replicas,
        is_needed: Callable[[], bool],
        on_gone: Callable[[], None],
    ) -> None:
        self._access = access
        self._replicas = replicas
        self._is_needed = is_needed
        self._on_gone = on_gone
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<ServeWatch {'idle' if self._timer is None else 'looking'}>"

    def begin(self) -> None:
        """Look now, unless that is done already, and again as long as it is needed."""
        if self._timer is None:
            self._look()

    def _look(self) -> None:
        self._timer = None
        if not self._is_needed():
            return
        if not self._replicas.has_ready and self._access.is_serve_gone:
            self._on_gone()
        else:
            self._timer = mailbox_of(self._access.loop).call_later(LOOK_S, self._look)
