"""Pickles of large objects, written and read piece by piece.

C's pickler hands large bytes, text and buffers to a file one by one, and its unpickler lets a file
read straight into the memory of the new object. So a large payload is never joined: what is sent
are the caller's own bytes, what is received lands in its object. An array is copied once on the way
out: the caller may change it as soon as `remote()` has returned. On the wire it is a plain pickle.
"""

from __future__ import annotations

import pickle
import time
from typing import Any

from serve_grpc.payload import Payload, Segments, joined

__all__ = ["LARGE_BYTES", "PICKLE_PROTOCOL", "dump", "load"]

PICKLE_PROTOCOL = 5
LARGE_BYTES = 64 * 1024
"""From this size on, C's pickler writes a piece of its own."""


class _Written:
    """A file for a pickler that keeps the pieces it writes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, part: Any) -> None:
        """Keep `part`; what may still change is copied."""
        self.parts.append(part if type(part) is bytes else bytes(part))


def dump(value: Any, pickler: type[pickle.Pickler]) -> Payload:
    """Pickle `value` with a `pickler`; in pieces if it is large."""
    file = _Written()
    pickler(file, PICKLE_PROTOCOL).dump(value)
    payload = Segments(file.parts)
    return payload if len(payload) >= LARGE_BYTES else joined(payload)


def load(payload: Payload) -> Any:
    """The value of a pickle.

    Raises:
        Exception: Whatever unpickling raises, on bytes that are no pickle.
    """
    if isinstance(payload, Segments):
        return pickle.Unpickler(_Arrived(payload)).load()
    return pickle.loads(payload)


class _Arrived:
    """A file for an unpickler over the pieces of a payload."""

    def __init__(self, payload: Segments) -> None:
        self._views = [memoryview(part) for part in reversed(payload.parts)]

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer`, as far as there is data."""
        target = memoryview(buffer).cast("B")
        filled = 0
        while self._views and filled < len(target):
            view = self._cut(len(target) - filled)
            target[filled : filled + len(view)] = view
            filled += len(view)
            if filled < len(target):
                # Other threads have a turn now, instead of after the interpreter's switch interval.
                time.sleep(0)
        return filled

    def read(self, size: int) -> bytes:
        """The next `size` bytes, as far as there are so many."""
        parts = []
        while self._views and size > 0:
            parts.append(self._cut(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def readline(self) -> bytes:
        """One line; only opcodes of pickle protocol 0 ask for it."""
        line = b""
        while self._views and not line.endswith(b"\n"):
            line += self.read(1)
        return line

    def _cut(self, size: int) -> memoryview:
        view = self._views.pop()
        if len(view) > size:
            self._views.append(view[size:])
            view = view[:size]
        return view
