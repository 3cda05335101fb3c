"""Copies large buffers without holding the interpreter's lock.

Assigning to a slice of a memoryview holds it: while 100 MB are copied, no other thread of the
process runs, and no loop. A foreign function runs without it. Both buffers are held as Python's own
code holds them, so neither can be freed or resized meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

__all__ = ["address_of", "copy_all", "copy_into"]

UNLOCKED_BYTES = 512 * 1024
"""From here on; a smaller copy takes less than 50 µs, and to get the lock back may take longer."""
SIMPLE, WRITABLE = 0, 1


class _Buffer(ctypes.Structure):
    """`Py_buffer`, a part of CPython's stable interface."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("object", ctypes.c_void_p),
        ("size", ctypes.c_ssize_t),
        ("item_size", ctypes.c_ssize_t),
        ("is_readonly", ctypes.c_int),
        ("dimensions", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("sub_offsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get = ctypes.pythonapi.PyObject_GetBuffer
_get.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release = ctypes.pythonapi.PyBuffer_Release
_release.argtypes = (ctypes.POINTER(_Buffer),)
_release.restype = None


def copy_into(target: memoryview, source: Any) -> None:
    """Copy all bytes of `source` to `target`.

    Args:
        target: Writable, of the same size, one contiguous piece.
        source: Anything with a buffer in one contiguous piece, such as bytes or an array.

    Raises:
        BufferError: One of them is not contiguous, or `target` not writable.
        ValueError: The sizes differ.
    """
    seen = memoryview(source)
    if seen.nbytes != target.nbytes:
        raise ValueError(f"{seen.nbytes} bytes do not fit {target.nbytes} bytes exactly")
    if seen.nbytes >= UNLOCKED_BYTES:
        _copy_unlocked(target, seen)
    elif not seen.c_contiguous or target.readonly:
        raise BufferError("the source is not contiguous, or the target cannot be written")
    elif seen.nbytes:  # without elements there is nothing to cast
        target.cast("B")[:] = seen.cast("B")


def copy_all(target: memoryview, sources: Sequence[bytes | memoryview]) -> None:
    """Copy all bytes of `sources`, one behind the other, to the beginning of `target`.

    Args:
        target: Writable, single bytes in one piece.
        sources: Single bytes in one piece each, together no more than there is room for.

    Raises:
        BufferError, TypeError: `target` is not writable.
        ValueError: There is not so much room.
    """
    end = 0
    for source in sources:
        start, end = end, end + len(source)
        if len(source) < UNLOCKED_BYTES:  # of a list of arrays there may be thousands
            target[start:end] = source
        else:
            copy_into(target[start:end], source)


def address_of(source: Any) -> int:
    """Where the bytes of something with a buffer in one contiguous piece begin.

    Raises:
        BufferError: It is not contiguous.
    """
    of = _Buffer()
    _get(source, ctypes.byref(of), SIMPLE)
    _release(ctypes.byref(of))
    return of.address or 0


def _copy_unlocked(target: memoryview, source: memoryview) -> None:
    into, of = _Buffer(), _Buffer()
    _get(target, ctypes.byref(into), WRITABLE)
    try:
        _get(source, ctypes.byref(of), SIMPLE)
        try:
            ctypes.memmove(into.address, of.address, of.size)
        finally:
            _release(ctypes.byref(of))
    finally:
        _release(ctypes.byref(into))
