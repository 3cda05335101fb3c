"""A segment: nameless memory that two processes can map, made here or received.

Made here, all its pages are there from the start, it can neither shrink nor grow, and nobody but
this mapping can write to it. Received, it is checked for that before it is mapped: to touch a page
that is not there ends the process with SIGBUS. A descriptor belongs to whoever was given it; what
is refused stays the caller's.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import sys

__all__ = [
    "NoRoomError",
    "Segment",
    "SegmentRefusedError",
    "check",
    "create",
    "is_available",
    "map_fd",
    "read_range",
]

MFD_NOEXEC_SEAL = 0x8  # Linux 6.3; `os` has no name for it
F_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1; `fcntl` has no name for it
BLOCK_BYTES = 512
"""What `st_blocks` counts, whatever the file system."""


class SegmentRefusedError(ValueError):
    """What a peer sent cannot be used as a segment, or names no range of one."""


class NoRoomError(SegmentRefusedError):
    """It is a segment, but this process may not map so much."""


class Segment:
    """Memory that was made here.

    Attributes:
        size: In bytes, whole pages.
        view: Its bytes, writable.
    """

    __slots__ = ("_fd", "_file", "size", "view")

    def __init__(self, fd: int, mapping: mmap.mmap) -> None:
        self._fd = fd
        self._file = _file_of(fd)
        self.size = len(mapping)
        self.view = memoryview(mapping)

    def __repr__(self) -> str:
        return f"<Segment fd {self.fd}, {self.size} bytes>"

    @property
    def fd(self) -> int:
        """Its descriptor, to be sent to peers. They can map it, but not for writing.

        -1 if it was closed. Programs that become daemons close all descriptors, whosever they are,
        and the number may be another file's by now, which no peer is to see.
        """
        return self._fd if _file_of(self._fd) == self._file else -1

    def close(self) -> None:
        """Give back the descriptor, and the memory once no view of it lives, here or at a peer."""
        fd, self._fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        # Never `mmap.close`: the mapping must outlive the views that were taken of it.
        self.view = memoryview(b"")


def _file_of(fd: int) -> tuple[int, int] | None:
    """Which file a descriptor is of; None if it is closed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_available() -> bool:
    """Whether this platform has what segments are made of: Linux has, macOS has not."""
    return sys.platform == "linux" and all(
        hasattr(module, name)
        for module, name in ((os, "memfd_create"), (os, "posix_fallocate"), (fcntl, "F_GET_SEALS"))
    )


def create(size: int) -> Segment:
    """Make a segment of `size` bytes, a multiple of the page size.

    All its memory is taken here, which costs about a millisecond a megabyte. Over the limit of a
    cgroup Linux does not report an error, it kills: ask `memory_limits.has_room_for` first.

    Raises:
        OSError: There is no memory or no descriptor left.
    """
    fd = _memfd()
    try:
        os.posix_fallocate(fd, 0, size)
        mapping = mmap.mmap(fd, size)
        _seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return Segment(fd, mapping)


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("serve_grpc", flags | MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel that does not know the flag
            raise
        return os.memfd_create("serve_grpc", flags)


def _seal(fd: int) -> None:
    try:
        # Our own mapping, made before, can still write. A peer can neither write nor punch holes.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel that does not know the seal
            raise
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def check(fd: int, size: int, max_bytes: int) -> None:
    """Check a received descriptor, and make it close-on-exec: those from a socket may not be.

    Args:
        fd: The descriptor. It is not closed, whatever is found.
        size: What the peer says it has, in bytes.
        max_bytes: The most that is accepted.

    Raises:
        SegmentRefusedError: It is not what `create` makes, or not of that size.
    """
    try:
        found = os.fstat(fd)
        os.set_inheritable(fd, False)
    except OSError as error:
        raise SegmentRefusedError(f"descriptor {fd} is not open: {error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise SegmentRefusedError(f"not memory, but a file of mode {found.st_mode:#o}")
    if found.st_size != size:
        raise SegmentRefusedError(f"it has {found.st_size} bytes, {size} were announced")
    if not 0 < size <= max_bytes:
        raise SegmentRefusedError(f"{size} bytes, where 1 to {max_bytes} are accepted")
    if size % mmap.PAGESIZE or os.fstatvfs(fd).f_bsize != mmap.PAGESIZE:
        # Huge pages too: they may run out at the first touch, which is SIGBUS.
        raise SegmentRefusedError(f"{size} bytes are not whole pages of {mmap.PAGESIZE} bytes")
    if found.st_blocks * BLOCK_BYTES < size:
        raise SegmentRefusedError(
            f"only {found.st_blocks * BLOCK_BYTES} of its {size} bytes have memory"
        )
    _check_seals(fd)


def _check_seals(fd: int) -> None:
    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise SegmentRefusedError(f"it has no seals: {error}") from error
    if seals & wanted != wanted:
        raise SegmentRefusedError(f"it may still shrink or grow: its seals are {seals:#x}")


def map_fd(fd: int, size: int) -> mmap.mmap:
    """Map a received segment: writable, and what is written stays in this mapping.

    Raises:
        SegmentRefusedError: It was opened so that it cannot be read.
        OSError: This process cannot map more, or has no descriptor left.
    """
    flags, protection = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
    try:
        if sys.version_info >= (3, 13):  # before, a mapping holds a descriptor of its own
            return mmap.mmap(fd, size, flags=flags, prot=protection, trackfd=False)
        return mmap.mmap(fd, size, flags=flags, prot=protection)
    except PermissionError as error:
        raise SegmentRefusedError(f"it cannot be read: {error}") from error


def read_range(fd: int, offset: int, size: int) -> bytearray:
    """A copy of a received segment's bytes, which the caller knows to be there.

    Raises:
        OSError: It cannot be read.
    """
    data = bytearray(size)
    with memoryview(data) as view:
        done = 0
        while done < size:  # the kernel reads two gigabytes at a time
            part = os.preadv(fd, [view[done:]], offset + done)
            if part == 0:
                raise OSError(f"a segment ends {size - done} bytes too early")
            done += part
    return data
