"""What goes wrong with one replica, and what the log is told of it: rarer the longer it lasts.

`Trouble`: there is no session. `Penalty`: there is one, and the user's code fails where it does not
elsewhere. On the loop of the connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from serve_grpc._generated.replica_pb2 import Refusal
from serve_grpc.caller.reconnects import Reconnects
from serve_grpc.config import LOGGER_NAME
from serve_grpc.mailbox import mailbox_of
from serve_grpc.protocol.caller import HandshakeRefused
from serve_grpc.routing.peer import Peer

__all__ = ["Penalty", "RateLimitedWarning", "Trouble"]

logger = logging.getLogger(LOGGER_NAME)

RECONNECT_S = (0.1, 2.0)
"""Middle of the first pause, and of the longest, before a session is opened again."""
PAUSE_S = (30.0, 600.0)
"""First and longest time from one warning to the next. Twice the longest without one makes it the
first again."""
FEW_FAILURES = 3
"""Not worth a warning: a replica that starts or ends."""
REST_S = (1.0, 8.0)
"""First and longest pause of a replica that fails its calls."""


class RateLimitedWarning:
    """Warnings of one kind, about one replica.

    The first is said at once, so that whoever looks at the log sees it; after that each pause is
    twice the one before.
    """

    __slots__ = ("_pause_s", "_said_s")

    def __init__(self) -> None:
        self._said_s = float("-inf")
        self._pause_s = 0.0

    def __repr__(self) -> str:
        return f"<RateLimitedWarning, one each {self._pause_s:g} s>"

    def warn(self, text: str, *args: object) -> None:
        """Log a warning, unless the last one was a moment ago; `text % args` as in `logging`."""
        since_s = time.monotonic() - self._said_s
        if since_s < self._pause_s:
            return
        first_s, longest_s = PAUSE_S
        # Another trouble than that of the last time: its second warning is due soon again.
        is_old = since_s > 2 * longest_s
        self._pause_s = first_s if is_old else min(longest_s, 2 * self._pause_s)
        self._said_s = time.monotonic()
        logger.warning(text, *args)


class Trouble:
    """Why there is no session to one replica. Calls that give up waiting for it name this.

    Args:
        peer: Whose.
        reconnects: When it is tried again.

    Attributes:
        times: How often in a row the session could not be opened, or was lost.
        reason: Of the last time; "" while there is none.
    """

    __slots__ = ("_failed", "_peer", "_reconnects", "_unreachable", "reason", "times")

    def __init__(self, peer: Peer, reconnects: Reconnects) -> None:
        self._peer = peer
        self._reconnects = reconnects
        self._unreachable, self._failed = RateLimitedWarning(), RateLimitedWarning()
        self.times = 0
        self.reason = ""

    def __repr__(self) -> str:
        return f"<Trouble {self.times} times: {self.reason}>"

    def __str__(self) -> str:
        return f"{self._peer.facts.replica_id} at {self._peer.facts.address}: {self.reason}"

    def on_slow(self, waited_s: float) -> None:
        """The session takes long to open."""
        self.reason = self.reason or f"no answer within {waited_s:g} s"

    def on_lost(self, reason: BaseException | str) -> bool:
        """There is no session; returns whether the cluster's secret may be another one by now."""
        self.times += 1
        is_refused = isinstance(reason, HandshakeRefused)
        self.reason = str(reason) if is_refused or isinstance(reason, str) else repr(reason)
        # Said from the first time on: mostly somebody has to change a setting or a version.
        if is_refused:
            self._failed.warn(
                "%s refused the session: %s", self._peer.facts.replica_id, self.reason
            )
        elif not isinstance(reason, str):  # a bug, here or there
            self._failed.warn("the session failed with replica %s", self)
        elif self.times > FEW_FAILURES:
            self._unreachable.warn(
                "cannot reach replica %s; calls to it wait or go elsewhere", self
            )
        return isinstance(reason, HandshakeRefused) and reason.reason == Refusal.UNAUTHENTICATED

    def on_mute(self) -> None:
        """The session is there, but heartbeats are not answered."""
        logger.warning(
            "replica %s does not answer heartbeats; it gets no new calls until it does",
            self._peer.facts.replica_id,
        )

    def pause_s(self) -> float:
        """How long to wait before the session is opened again, in seconds; by chance."""
        first, longest = RECONNECT_S
        # The exponent is bounded too: 2**1024 has no float, and a replica may be away for hours.
        pause = min(longest, first * 2 ** min(self.times - 1, 10))
        # Jitter, so that the callers of a replica that comes back do not come all at once.
        now_s = asyncio.get_running_loop().time()
        return self._reconnects.due_s(now_s, pause * random.uniform(0.5, 1.5)) - now_s

    def on_opened(self) -> None:
        """There is a session."""
        self.times = 0
        self.reason = ""


class Penalty:
    """What becomes of a replica where the user's code fails while it does not elsewhere.

    It gets no calls for a while, then one at a time until one fails again, and longer pauses each
    time. Invariant: a penalised peer either rests, with a timer running, or may be probed.

    Args:
        peer: Where it is noted.
        on_rested: Called when the peer may have a call again.
    """

    __slots__ = ("_mailbox", "_on_rested", "_peer", "_rests", "_timer", "_warning")

    def __init__(self, peer: Peer, on_rested: Callable[[], None]) -> None:
        self._peer = peer
        self._on_rested = on_rested
        self._mailbox = mailbox_of(asyncio.get_running_loop())
        self._timer: asyncio.TimerHandle | None = None
        self._rests = 0
        self._warning = RateLimitedWarning()

    def on_outlier(self) -> None:
        """Nearly all calls fail on this replica, and on another one they do not."""
        peer = self._peer
        if self._timer is not None:
            if peer.penalised:
                return
            self._timer.cancel()  # of a rest from which it was pardoned
        # Pardoned or new: what was before is forgotten, and the first rest is short again.
        if not peer.penalised:
            self._rests = 0
            self._warning.warn(
                "replica %s fails nearly all of its calls and others do not; it gets hardly any "
                "calls until they succeed",
                peer.facts.replica_id,
            )
        first, longest = REST_S
        peer.penalise()
        self._timer = self._mailbox.call_later(min(longest, first * 2**self._rests), self._rested)
        self._rests += 1

    def _rested(self) -> None:
        self._timer = None
        # A pardon in the meantime took the penalty off, and there is nothing to probe.
        self._peer.may_probe = self._peer.penalised
        self._on_rested()

    def close(self) -> None:
        """The replica is gone."""
        if self._timer is not None:
            self._timer.cancel()
