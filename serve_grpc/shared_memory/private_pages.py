"""Private copies of a mapping's pages: dropped, so that its file shows through again, or made.

A page that nobody wrote to is the file's own and stays mapped: to map it again at the next touch
costs more than the look here, from 64 KiB on. The kernel tells which pages are private copies;
where it does not (no /proc, or not for this process), all pages are dropped.
"""

from __future__ import annotations

import mmap
import os
import sys

__all__ = ["PrivatePages"]

PAGEMAP = "/proc/self/pagemap"
POPULATE_WRITE = 23  # Linux 5.14; `mmap` has no name for it
ENTRY_BYTES = 8
TOP_BYTE = ENTRY_BYTES - 1 if sys.byteorder == "little" else 0
# The top bits of an entry, see the kernel's admin-guide/mm/pagemap.
PRESENT, SWAPPED, IS_OF_FILE = 0x80, 0x40, 0x20
NOT_PRIVATE = bytes(top for top in range(256) if top & IS_OF_FILE or not top & (PRESENT | SWAPPED))


class PrivatePages:
    """Knows which pages of this process's mappings are private copies."""

    __slots__ = ("_fd", "_pid")

    def __init__(self) -> None:
        self._fd = -1
        self._pid = 0

    def drop(self, mapping: mmap.mmap, address: int, offset: int, size: int) -> None:
        """Make `size` bytes from `offset` on show the file's bytes.

        Args:
            mapping: A private one.
            address: Where it begins in memory.
            offset: A multiple of the page size.
            size: In bytes; the last page is dropped as a whole.

        Raises:
            OSError: The kernel refuses, as it does for memory that the process has locked.
        """
        if self.are_in(address + offset, size) is not False:
            mapping.madvise(mmap.MADV_DONTNEED, offset, size)

    def make(self, mapping: mmap.mmap, offset: int, size: int) -> bool:
        """Make private copies of all pages, as if each was written to; False if that cannot be.

        Args: As of `drop`.
        """
        try:
            mapping.madvise(POPULATE_WRITE, offset, size)
        except OSError:  # an older kernel, or there is no memory
            return False
        return True

    def are_in(self, address: int, size: int) -> bool | None:
        """Whether any of these bytes was written to; None if the kernel does not say.

        Args:
            address: Where they begin, a multiple of the page size.
            size: In bytes.
        """
        pages = -(-size // mmap.PAGESIZE)
        try:
            place = address // mmap.PAGESIZE * ENTRY_BYTES
            entries = os.pread(self._descriptor(), pages * ENTRY_BYTES, place)
        except OSError:
            return None
        if len(entries) < pages * ENTRY_BYTES:
            return None
        return bool(entries[TOP_BYTE::ENTRY_BYTES].translate(None, NOT_PRIVATE))

    def close(self) -> None:
        """Give back the descriptor; it is opened again when it is needed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _descriptor(self) -> int:
        if self._pid != os.getpid():  # one from before a fork shows the parent's memory
            self.close()
        if self._fd < 0:
            self._fd = os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
            self._pid = os.getpid()
        return self._fd
