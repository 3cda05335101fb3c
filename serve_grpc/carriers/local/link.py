"""Either end of a link over a Unix socket: its two halves, and how it ends.

The end in peace is a frame behind all messages, the end at once a frame with its reason, if the
kernel takes it and no message is half written. A peer whose socket ends without either is gone.
Invariant: the socket is closed once, and nothing of it is left in the event loop then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct

from serve_grpc.carriers.link import SESSION_MESSAGE_BYTES, Cause
from serve_grpc.carriers.local.forks import keep_from_children
from serve_grpc.carriers.local.framing import ABORT, CLOSE, abort_body, header
from serve_grpc.carriers.local.incoming import CLOSED, Incoming
from serve_grpc.carriers.local.memory import open_memory
from serve_grpc.carriers.local.outgoing import Outgoing
from serve_grpc.carriers.local.standstill import StandstillWatch
from serve_grpc.config import LOGGER_NAME

__all__ = ["LocalLink", "stranger"]

logger = logging.getLogger(LOGGER_NAME)

CLOSE_S = 1.0
"""For what was written to leave, when a link is closed in peace."""

_CREDENTIALS = struct.Struct("3i")  # process, user, group


def stranger(sock: socket.socket) -> str:
    """Why the process at the other end may not be talked to; "" if it is one of this user's."""
    _, user, _ = _credentials(sock)
    return "" if user == os.geteuid() else f"the other side is of user {user}"


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    # The kernel's word, of when the socket was connected: nobody can lie about it.
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, group = _CREDENTIALS.unpack(raw)
    return process, user, group


class LocalLink:
    """Either end. Is a `Link`. Lives on the running loop.

    Args:
        sock: Connected; the link closes it.
        is_accepted: This is the replica's end, and who is at the other one has to prove itself.
        max_message_bytes: Largest message that is taken.
    """

    carrier = "local"

    def __init__(
        self,
        sock: socket.socket,
        *,
        is_accepted: bool,
        max_message_bytes: int = SESSION_MESSAGE_BYTES,
    ) -> None:
        sock.setblocking(False)
        keep_from_children(sock)
        self._sock = sock
        process, _, _ = _credentials(sock)
        self._name = f"process {process}"
        self._outgoing = Outgoing(sock, self._on_wait, self._on_broken)
        self.memory = open_memory(self._outgoing)
        self._incoming = Incoming(
            sock,
            self._outgoing,
            self._name,
            max_message_bytes,
            is_accepted,
            self.memory,
            self._on_end,
        )
        self._watch = StandstillWatch(process, self._on_standstill)
        # The halves' own: one call less for each message.
        self.read = self._incoming.read
        self.write = self._outgoing.write
        self.is_closed = False

    def __repr__(self) -> str:
        return f"<LocalLink to {self._name}, {'closed' if self.is_closed else 'open'}>"

    def _on_wait(self) -> None:
        self._incoming.start()

    def _on_broken(self, error: OSError) -> None:
        self._let_go(self._incoming.is_gone(error))

    def _on_standstill(self) -> None:
        self.end(Cause.LEFT, f"{self._name} was stopped")

    def _on_end(self, reason: str, is_invalid: bool) -> None:
        # What has arrived can still be read; the socket has nothing more to give.
        if is_invalid:
            self._say_abort(Cause.INVALID, reason)
        self._let_go(reason or CLOSED)

    def end(self, cause: Cause, reason: str) -> None:
        """As `abort`, which waits for nothing."""
        self._incoming.lose(reason)
        self._say_abort(cause, reason)
        self._let_go(reason)
        if self.memory is not None:
            self.memory.close()

    async def abort(self, cause: Cause, reason: str) -> None:
        """As of `Link`; the other end hears of it, unless a message is half written."""
        self.end(cause, reason)

    def _say_abort(self, cause: Cause, reason: str) -> None:
        if self._sock.fileno() < 0 or self._outgoing.is_half_written:
            return
        body = abort_body(cause, reason)
        try:
            self._sock.send(header(ABORT, 0, self._outgoing.taken, len(body)) + body)
        except OSError as error:  # it does not read, or is gone
            logger.debug("%s does not hear why its link ends: %s", self._name, error)

    async def close(self) -> None:
        """As of `Link`; waits until what was written is out, for `CLOSE_S` at the most."""
        if self.is_closed:
            return
        # Before the await: whoever closes it meanwhile must not do so again.
        self.is_closed = True
        self._incoming.lose(CLOSED)
        self._incoming.stop()
        self._outgoing.refuse(CLOSED)
        try:
            if self._sock.fileno() >= 0:
                self._outgoing.send(CLOSE)
                if self._outgoing.is_half_written:
                    await asyncio.wait_for(self._outgoing.wait_out(), CLOSE_S)
        except asyncio.TimeoutError:
            logger.debug("%s does not read the end of its link", self._name)
        finally:
            self._let_go(CLOSED)
            # Not before: what had arrived before the end could still be read.
            if self.memory is not None:
                self.memory.close()

    def _let_go(self, reason: str) -> None:
        self._watch.close()
        self._outgoing.lose(reason)
        self._incoming.stop()
        self._sock.close()
