"""The pause after which a full house is looked at again, as long as Serve's backoff says.

For where no news would wake the calls that wait. On the router's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve_grpc._serve.routers import RouterAccess
from serve_grpc.transport.mailbox import mailbox_of

__all__ = ["Pause"]


class Pause:
    """Of one router.

    Args:
        access: To Serve's router, which has the configuration.
        on_over: Called when a pause is over.

    Attributes:
        times: How often there was one since an answer came; each is longer than the one before.
    """

    def __init__(self, access: RouterAccess, on_over: Callable[[], None]) -> None:
        self._access = access
        self._on_over = on_over
        self._timer: asyncio.TimerHandle | None = None
        self.times = 0

    def __repr__(self) -> str:
        return f"<Pause {'over' if self._timer is None else 'begun'}, {self.times} before>"

    def begin(self) -> None:
        """Pause, unless that is done already."""
        if self._timer is None:
            delay_s = self._access.backoff.delay_s(self.times)
            self._timer = mailbox_of(self._access.loop).call_later(delay_s, self._over)

    def _over(self) -> None:
        self._timer = None
        self.times += 1
        self._on_over()

    def close(self) -> None:
        """Leave no timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
