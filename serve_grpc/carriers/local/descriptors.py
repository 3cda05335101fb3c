"""Descriptors on their way in: each belongs to a frame that names a segment of the peer's memory.

The kernel gives descriptors with the first byte of their frame, so they may come before the rest of
it; a frame names one, and the message behind it takes them all. None is mapped before that message
is read, so a stranger at a replica's door maps nothing. Invariant: each descriptor is mapped, or
closed here.
"""

from __future__ import annotations

import array
import os
import socket
from dataclasses import dataclass

from serve_grpc.carriers.local.framing import FORGOTTEN, SEGMENT, FramingError
from serve_grpc.carriers.local.memory import LocalMemory

__all__ = ["ANCILLARY_BYTES", "Ancillary", "ArrivingSegments", "WithSegments"]

MAX_DESCRIPTORS = 253
"""In one message; the kernel takes no more."""
ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)

Ancillary = list[tuple[int, int, bytes]]
"""As `socket.recvmsg` gives it."""
_Segment = tuple[bytes, int]
"""The body of its frame, and its descriptor."""


@dataclass
class WithSegments:
    """A message, and the segments that came before it."""

    body: bytes
    segments: list[_Segment]


class ArrivingSegments:
    """What of a link's shared memory is on its way in. Args: `memory`, None if it has none."""

    def __init__(self, memory: LocalMemory | None) -> None:
        self._memory = memory
        self._descriptors: list[int] = []  # that came before their frames
        self._segments: list[_Segment] = []  # that came before their message

    def __bool__(self) -> bool:
        """Whether the next message has segments."""
        return bool(self._segments)

    def keep(self, ancillary: Ancillary, *, is_wanted: bool, is_cut: bool) -> None:
        """Keep descriptors until their frames are read, which are behind them.

        Args:
            ancillary: What has them.
            is_wanted: Whether the peer may send any.
            is_cut: Whether the kernel could not give all.

        Raises:
            FramingError: They are not wanted, too many, or not all here; they are closed with the
                others.
        """
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(data[: len(data) - len(data) % found.itemsize])
                self._descriptors += found
        if not is_wanted or self._memory is None:
            raise FramingError("descriptors came that nobody asked for")
        if is_cut:
            raise FramingError("this process has no descriptors left for shared memory")
        if len(self._descriptors) + len(self._segments) > MAX_DESCRIPTORS:
            raise FramingError(f"over {MAX_DESCRIPTORS} descriptors before a message")

    def check_frames_came(self) -> None:
        """All that has come is whole frames, so nothing of a descriptor's frame is missing.

        Raises:
            FramingError: A descriptor is left.
        """
        if self._descriptors:
            raise FramingError("descriptors came that nobody asked for")

    def on_frame(self, kind: int, body: bytes) -> None:
        """Take in a frame about memory.

        Raises:
            FramingError: It says what cannot be.
        """
        if self._memory is None:
            raise FramingError(f"a frame of kind {kind} on a link without shared memory")
        if kind == SEGMENT:
            if not self._descriptors:
                raise FramingError("a segment came without its descriptor")
            self._segments.append((body, self._descriptors.pop(0)))
            return
        try:
            if kind == FORGOTTEN:
                self._memory.on_forgotten(body)
            else:
                self._memory.on_given_back(kind, body)
        except ValueError as error:
            raise FramingError(str(error)) from error

    def with_message(self, body: bytes) -> WithSegments:
        """A message that has come, with what came before it."""
        segments, self._segments = self._segments, []
        return WithSegments(body, segments)

    def map(self, message: WithSegments) -> bytes:
        """Map the segments of a message that is being read; returns its bytes.

        Raises:
            FramingError: One of them is not what it should be; all that are not mapped are closed.
        """
        assert self._memory is not None
        while message.segments:
            body, descriptor = message.segments[0]
            try:
                self._memory.on_segment(body, descriptor)
            except (ValueError, OSError) as error:
                self.drop(message)
                raise FramingError(f"a segment is refused: {error}") from error
            del message.segments[0]
        return message.body

    def drop(self, message: bytes | WithSegments) -> None:
        """A message will not be read."""
        if isinstance(message, WithSegments):
            for _, descriptor in message.segments:
                os.close(descriptor)
            message.segments.clear()

    def close(self) -> None:
        """No more frames come; messages that have come may still be read."""
        for descriptor in (*self._descriptors, *(descriptor for _, descriptor in self._segments)):
            os.close(descriptor)
        self._descriptors.clear()
        self._segments.clear()
