"""What wakes calls that wait where no news would: a pause, and a look whether Serve is still there.

Calls in a line move when a replica says something. A replica that turned a call away and then fell
silent says nothing, and once Serve was shut down no news of a deployment come any more. On the
router's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve_grpc._serve.routers import RouterAdapter
from serve_grpc.mailbox import mailbox_of

__all__ = ["BackoffTimer", "ServeWatch"]

LOOK_S = 1.0
"""Between two looks. A look asks nobody: it reads a flag of Serve's long poll client."""


class BackoffTimer:
    """The pause after which a full house is looked at again, as long as Serve's backoff says.

    Args:
        adapter: To Serve's router, which has the configuration.
        on_over: Called when a pause is over.

    Attributes:
        times: How often there was one since an answer came; each is longer than the one before.
    """

    def __init__(self, adapter: RouterAdapter, on_over: Callable[[], None]) -> None:
        self._adapter = adapter
        self._on_over = on_over
        self._timer: asyncio.TimerHandle | None = None
        self.times = 0

    def __repr__(self) -> str:
        return f"<BackoffTimer {'over' if self._timer is None else 'begun'}, {self.times} before>"

    def begin(self) -> None:
        """Begin a pause, unless there is one already."""
        if self._timer is None:
            delay_s = self._adapter.backoff.delay_s(self.times)
            self._timer = mailbox_of(self._adapter.loop).call_later(delay_s, self._over)

    def _over(self) -> None:
        # Both before the call: it may begin the next pause, which looks at both.
        self._timer = None
        self.times += 1
        self._on_over()

    def close(self) -> None:
        """Leave no timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ServeWatch:
    """Looks, while somebody waits, whether Serve can still send news.

    Args:
        adapter: To Serve's router.
        is_needed: Whether calls wait.
        has_ready: Whether a replica answers: it moves who waits, Serve or not.
        on_gone: Called when Serve is gone while calls wait, and no replica answers.
    """

    def __init__(
        self,
        adapter: RouterAdapter,
        *,
        is_needed: Callable[[], bool],
        has_ready: Callable[[], bool],
        on_gone: Callable[[], None],
    ) -> None:
        self._adapter = adapter
        self._is_needed = is_needed
        self._has_ready = has_ready
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
        # No timer while nobody waits: an idle handle costs nothing.
        if not self._is_needed():
            return
        # A replica that answers outlives Serve's controller, and moves the line by itself.
        if not self._has_ready() and self._adapter.is_serve_gone:
            self._on_gone()
        else:
            self._timer = mailbox_of(self._adapter.loop).call_later(LOOK_S, self._look)
