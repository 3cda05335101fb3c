"""One session with a replica, from the dial to its loss: the protocol's machine and its pump.

What exists only while there is a session stands here, heartbeat included; `Connection` has one of
these or none. On the connection's loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from serve_grpc.caller.events import Carried
from serve_grpc.carriers.caller_pump import CallerPump
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.link import Dial
from serve_grpc.config import Settings
from serve_grpc.mailbox import Mailbox
from serve_grpc.protocol.caller import CallerSession
from serve_grpc.protocol.handshake import NONCE_BYTES
from serve_grpc.routing.peer import ReplicaFacts

__all__ = ["Session"]

IDLE_PING_INTERVALS = 20
"""A session without calls is asked for life this many times less often."""
SUSPECT_AFTER_INTERVALS = 1.25
"""How long an answer may take. With the interval of silence before the question, and a beat for
each of both to be noticed, no call is sent to a replica that is mute for 2.75 intervals."""


class Session:
    """Dials at once.

    Args:
        facts: Of the replica.
        settings: Limits, heartbeat, TLS.
        secret: The cluster's, of now.
        counters: Where messages are counted.
        mailbox: Of the connection's loop.
        dial: Makes the link.
        on_message: Called with each message; an exception of it ends the session.
        on_closed: Called once when the link is gone, with the reason.

    Attributes:
        machine: The state machine, which has the calls of this session.
        is_open: Whether the replica has let us in.
        look_s: When the next beat is to look at it if no call is on it, on `time.monotonic`; 0 for
            each beat, for an answer is due.
        kick: Tells the pump that there is something to write, as `CallerPump.kick`.
    """

    __slots__ = (
        "_interval_s",
        "_mailbox",
        "_on_closed",
        "_on_message",
        "_ping_number",
        "_pinged_s",
        "_pump",
        "_received_s",
        "is_open",
        "kick",
        "look_s",
        "machine",
    )

    def __init__(
        self,
        facts: ReplicaFacts,
        settings: Settings,
        secret: bytes,
        counters: Counters,
        mailbox: Mailbox,
        dial: Dial,
        *,
        on_message: Callable[[bytes], None],
        on_closed: Callable[[BaseException | str], None],
    ) -> None:
        self.machine: CallerSession[Carried] = CallerSession(
            replica_id=facts.replica_id,
            secret=secret,
            nonce=os.urandom(NONCE_BYTES),
            max_message_bytes=settings.max_message_bytes,
            takes_stored=settings.stores_oversize,
        )
        self.is_open = False
        self._mailbox = mailbox
        self._on_message, self._on_closed = on_message, on_closed
        self._interval_s = settings.heartbeat_interval_s
        self._received_s = 0.0
        self._ping_number = 0
        self._pinged_s: float | None = None
        self.look_s = 0.0
        self._pump = CallerPump(
            self.machine,
            facts.address,
            settings,
            dial,
            on_message=self._hear,
            on_closed=self._end,
            counters=counters,
        )
        # Bound once: each call asks for it.
        self.kick = self._pump.kick
        self._pump.start()

    def __repr__(self) -> str:
        return f"<Session {self.machine!r}>"

    # By `enter`: meanwhile `Mailbox.run` posts, so nothing that the user's code does runs in the
    # midst of a message (decision 0017).

    def _hear(self, data: bytes) -> None:
        self._mailbox.enter(self._on_message, data)

    def _end(self, reason: BaseException | str) -> None:
        self._mailbox.enter(self._on_closed, reason)

    @property
    def carrier(self) -> str:
        """What carries it, "" until the dial is over."""
        return self._pump.carrier

    def kick_item(self) -> None:
        """As of `CallerPump`."""
        self._pump.kick_item()

    def has_failed_on(self, carrier: str) -> bool:
        """Whether it ended before the replica let us in, over this carrier."""
        # Also by a refusal: who refuses has proved nothing, so that may not have been the replica.
        return self.carrier == carrier and not self.is_open

    def cancel(self, reason: str = "closed by the caller") -> None:
        """End it; `on_closed` follows, with this reason."""
        self._pump.cancel(reason)

    async def wait_closed(self) -> None:
        """Return when `on_closed` has been called."""
        await self._pump.wait_closed()

    # ------------------------------------------------------------ heartbeat

    def on_message(self) -> None:
        """A message came, and any message is a sign of life."""
        self._received_s = time.monotonic()
        self._pinged_s = None

    def beat(self, now_s: float, *, has_calls: bool) -> bool:
        """Ask a silent replica for a sign of life; sets `look_s`.

        Args:
            now_s: On `time.monotonic`.
            has_calls: Whether calls are on it; who waits for nothing asks less often.

        Returns:
            Whether the replica was asked too long ago.
        """
        # A dial has a timer of its own, and before the handshake nobody answers pings.
        if not self.is_open:
            self.look_s = now_s + self._interval_s
            return False
        # One question at a time: a later one would put the answer's deadline off.
        if self._pinged_s is not None:
            return now_s - self._pinged_s >= SUSPECT_AFTER_INTERVALS * self._interval_s
        patience = 1 if has_calls else IDLE_PING_INTERVALS
        self.look_s = self._received_s + patience * self._interval_s
        if now_s >= self.look_s:
            # From 1 on, for 0 is an absent field on the wire; and it stays within 32 bits.
            self._ping_number = self._ping_number % (2**31) + 1
            self._pinged_s, self.look_s = now_s, 0.0
            self.machine.ping(self._ping_number)
            self._pump.kick()
        return False
