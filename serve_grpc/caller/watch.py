"""Whether Serve is still there, looked at while somebody waits for it.

Once Serve was shut down no news of a deployment come any more, and nothing else would wake who
waits for a replica. On the router's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve_grpc._serve.routers import RouterAccess

__all__ = ["ServeWatch"]

LOOK_S = 1.0


class ServeWatch:
    """For one router.

    Args:
        access: To Serve's router.
        is_needed: Whether calls wait that nothing moves but Serve's news.
        on_gone: Called when Serve is gone while they do.
    """

    def __init__(
        self, access: RouterAccess, is_needed: Callable[[], bool], on_gone: Callable[[], None]
    ) -> None:
        self._access = access
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
        if self._access.is_serve_gone:
            self._on_gone()
        else:
            self._timer = self._access.loop.call_later(LOOK_S, self._look)
