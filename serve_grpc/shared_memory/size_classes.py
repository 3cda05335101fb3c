"""The sizes that ranges have: few, so that a range fits the next payload of about the same size."""

from __future__ import annotations

import mmap

__all__ = ["SMALLEST_RANGE_BYTES", "size_class"]

SMALLEST_RANGE_BYTES = 64 * 1024
STEPS = 4
"""Sizes from one power of two to the next: at most a quarter of a payload's size is unused."""


def size_class(size: int) -> int:
    """The size of the ranges that payloads of `size` bytes get, in bytes: whole pages."""
    if size <= SMALLEST_RANGE_BYTES:
        return SMALLEST_RANGE_BYTES
    step = max(mmap.PAGESIZE, (1 << (size - 1).bit_length()) // 2 // STEPS)
    return -(-size // step) * step
