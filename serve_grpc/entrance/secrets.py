"""The cluster's secrets as one event loop knows them, and when to ask for them again.

What is known is trusted for `FRESH_S`; after that it is read again before it decides anything, so
that a secret which was rotated out is soon worth nothing. A key that is not known may be newer than
what was read, so it is a reason to read as well, but not more often than `MIN_PAUSE_S` allows: it
may also be made up. Reading happens in a thread. Nobody waits longer than `MAX_WAIT_S` for it;
while the store cannot be reached, what is known stays good.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from serve_grpc.config import LOGGER_NAME
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.threads import in_thread

__all__ = ["ClusterSecrets"]

logger = logging.getLogger(LOGGER_NAME)

FRESH_S = 5.0
"""So long a secret that was rotated out may still open sessions (docs/decisions/0013)."""
MAX_WAIT_S = 1.0
"""So long a store that hangs can hold up a session or a plain call."""
MIN_PAUSE_S = 1.0
"""Between two reads in the long run, however many peers give a reason to read."""
MAX_READS_AT_ONCE = 3
"""Reads in excess of one each `MIN_PAUSE_S`: a key that was made up does not use up the read that a
member of the cluster needs."""


class ClusterSecrets:
    """Lives on one event loop. Attribute `keyring`: what is known; one object for its whole life.

    Args:
        read: Blocks; gives the secrets, the current one first.
        known: What it gave a moment ago, if it was asked.
    """

    def __init__(
        self, read: Callable[[], Iterable[bytes]], known: Iterable[bytes] | None = None
    ) -> None:
        self.keyring = Keyring(known or ())
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._read_s = float("-inf") if known is None else time.monotonic()
        self._reads_left = float(MAX_READS_AT_ONCE)
        self._counted_s = time.monotonic()
        self._is_reading = False
        self._waiting: asyncio.Future[None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<ClusterSecrets {self.keyring!r}>"

    # ------------------------------------------------------------ for those who wait

    async def fresh(self) -> None:
        """Return when what is known may be trusted."""
        # Shielded: others wait for the same read, and a cancel of this task is not theirs.
        waiting = self.refresh()
        if waiting is not None:
            await asyncio.shield(waiting)

    async def reread(self) -> bool:
        """Look for a newer secret; False if that was done too often of late."""
        waiting = self.refresh(is_doubted=True)
        if waiting is None:
            return False
        await asyncio.shield(waiting)
        return True

    def refresh(self, *, is_doubted: bool = False) -> asyncio.Future[None] | None:
        """Read if that is due.

        Args:
            is_doubted: Whether there is a reason to believe that a newer secret exists.

        Returns:
            Done when it was read or is not to be waited for any longer; None if nothing is due.
        """
        # None once a read takes longer than `MAX_WAIT_S`: nobody else begins to wait for it.
        if self._is_reading:
            return self._waiting
        is_fresh = bool(self.keyring) and time.monotonic() - self._read_s <= FRESH_S
        if is_fresh and not is_doubted:
            return None
        return self._start() if self._may_read() else None

    # ------------------------------------------------------------ reading

    def _may_read(self) -> bool:
        # A token bucket, filled by the time that has passed since it was last looked at.
        now_s = time.monotonic()
        earned = (now_s - self._counted_s) / MIN_PAUSE_S
        self._reads_left = min(float(MAX_READS_AT_ONCE), self._reads_left + earned)
        self._counted_s = now_s
        if self._reads_left < 1:
            return False
        self._reads_left -= 1
        return True

    def _start(self) -> asyncio.Future[None] | None:
        try:
            reading = in_thread(lambda: tuple(self._read()))
        except RuntimeError:
            return None  # this process ends, and starts no thread any more
        self._is_reading = True
        self._read_s = time.monotonic()  # what is read is at least as new as this
        waiting = self._waiting = self._loop.create_future()
        self._patience = self._loop.call_later(MAX_WAIT_S, self._wait_no_longer)
        reading.add_done_callback(self._on_read)
        return waiting

    def _on_read(self, reading: asyncio.Future[tuple[bytes, ...]]) -> None:
        self._is_reading = False
        # After an error what is known counts as fresh again (`_read_s`): a store that is down is
        # not asked once for each peer.
        if not reading.cancelled():
            error = reading.exception()
            if error is None:
                self.keyring.replace(reading.result())
            else:
                logger.warning("the secret of the Ray cluster cannot be read: %r", error)
        self._wait_no_longer()

    def _wait_no_longer(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
