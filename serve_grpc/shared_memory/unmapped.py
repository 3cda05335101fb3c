"""The receiver's side of segments that it cannot map: their bytes are copied out, at once.

A sender may have more memory than its receiver may map, or the receiver may have no addresses or
descriptors left for a mapping. That is no fault of the sender, so no session ends for it. A view
on such a range is of a copy, and the range is the sender's again at once.
"""

from __future__ import annotations

import os
import sys

from serve_grpc.shared_memory.segments import SegmentRefusedError, check, read_range

__all__ = ["Unmapped"]


class Unmapped:
    """Some segments of one peer, by the peer's numbers. Args: `max_segments`, of these."""

    def __init__(self, max_segments: int) -> None:
        self._max_segments = max_segments
        self._found: dict[int, tuple[int, int]] = {}  # descriptor and size

    def __repr__(self) -> str:
        return f"<Unmapped {len(self._found)} segments>"

    def __contains__(self, number: int) -> bool:
        return number in self._found

    def add(self, number: int, fd: int, size: int) -> None:
        """As `Mappings.add`.

        Raises:
            SegmentRefusedError: The peer lies, or has sent too many.
        """
        if len(self._found) >= self._max_segments:
            raise SegmentRefusedError(f"more than {self._max_segments} segments")
        check(fd, size, sys.maxsize)
        self._found[number] = fd, size

    def read(self, number: int, offset: int, size: int) -> memoryview:
        """A copy of a range; it cannot be written to, so that each reader makes one of its own.

        Raises:
            SegmentRefusedError: There is no such range.
            OSError: It cannot be read.
        """
        fd, segment_bytes = self._found[number]
        if offset < 0 or size <= 0 or offset + size > segment_bytes:
            raise SegmentRefusedError(
                f"segment {number} of {segment_bytes} bytes has no range of {size} from {offset} on"
            )
        return memoryview(read_range(fd, offset, size)).toreadonly()

    def remove(self, number: int) -> None:
        """The peer names it no more."""
        os.close(self._found.pop(number)[0])

    def close(self) -> None:
        """The peer is gone."""
        for number in tuple(self._found):
            self.remove(number)
