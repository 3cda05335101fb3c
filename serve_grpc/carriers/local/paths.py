"""Where the sockets of a node's replicas lie: one private directory, a socket for each replica.

The directory is ours alone (mode 0700), and is looked at before it is used. A socket gets its name
when it listens already (`published`): so one that refuses connections belongs to nobody, and may
be removed by any replica that starts. Names are never used twice. A name ends with the version that
its replica speaks, so that a caller of another build knows before it says a word.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Callable

from serve_grpc.carriers.local import framing
from serve_grpc.config import LOGGER_NAME

__all__ = [
    "MAX_SOCKET_PATH_BYTES",
    "is_understood",
    "open_directory",
    "published",
    "remove_leftovers",
]

logger = logging.getLogger(LOGGER_NAME)

MAX_SOCKET_PATH_BYTES = 107
"""`sockaddr_un` of Linux has 108, and the last one is a zero."""

FOLDER = "serve_grpc"
NOT_YET = ".new"
"""Behind the name of a socket that may not listen yet."""
ABANDONED_S = 60.0
"""A socket that was not given its name for so long is of a replica that was killed just then."""

_NAME = re.compile(r"replica-[0-9a-f]{12}\.v([0-9]{1,4})")
_LONGEST = len("replica-") + 12 + len(".v") + 4 + len(NOT_YET)


def open_directory(session_directory: str) -> str:
    """The directory of this user's sockets, made if there is none yet.

    Args:
        session_directory: Ray's, of this node and cluster.

    Returns:
        Its path: within Ray's directory if a socket's path fits there, else within the temporary
        one; the same for all replicas of a node that have the same user.

    Raises:
        OSError: It cannot be made, or it is not ours alone; the text says which.
    """
    uid = os.geteuid()
    directory = os.path.join(session_directory, f"{FOLDER}-{uid}")
    if not _fits(directory):
        cluster = hashlib.sha256(os.fsencode(session_directory)).hexdigest()[:12]
        directory = os.path.join(tempfile.gettempdir(), f"{FOLDER}-{uid}-{cluster}")
        if not _fits(directory):
            raise OSError(errno.ENAMETOOLONG, "no path of a socket fits there", directory)
    # Of several replicas that start, one makes it.
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    _check_private(directory, uid)
    return directory


def _fits(directory: str) -> bool:
    return len(os.fsencode(directory)) + 1 + _LONGEST <= MAX_SOCKET_PATH_BYTES


def _check_private(directory: str, uid: int) -> None:
    # Not followed: a link may be turned to another place after this look.
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.ENOTDIR, "the place of the sockets is no directory", directory)
    if found.st_uid != uid:
        text = f"the directory of the sockets belongs to user {found.st_uid}, not to {uid}"
        raise OSError(errno.EPERM, text, directory)
    if mode := stat.S_IMODE(found.st_mode) & 0o077:
        text = f"others may use the directory of the sockets (mode bits {mode:03o})"
        raise OSError(errno.EPERM, text, directory)


def published(directory: str, listen: Callable[[str], None]) -> str:
    """Let a new socket listen; returns its path.

    Args:
        directory: As of `open_directory`.
        listen: Binds a socket to a path and listens on it.

    Raises:
        OSError: As of `listen`.
    """
    path = os.path.join(directory, f"replica-{os.urandom(6).hex()}.v{framing.VERSION}")
    # Between bind and listen it refuses connections, as the socket of a dead replica does.
    listen(path + NOT_YET)
    os.rename(path + NOT_YET, path)
    return path


def is_understood(path: str) -> bool:
    """Whether who listens at a published path speaks as this process does."""
    found = _NAME.fullmatch(os.path.basename(path))
    return found is not None and int(found[1]) == framing.VERSION


def remove_leftovers(directory: str) -> int:
    """Remove the sockets of replicas that were killed, of any version; returns how many.

    Several replicas may do this at once, while others start.

    Raises:
        OSError: The directory cannot be read.
    """
    removed = 0
    for entry in os.scandir(directory):
        name = entry.name.removesuffix(NOT_YET)
        if _NAME.fullmatch(name) and _is_left_over(entry):
            # Another replica that starts may have been faster.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
                removed += 1
    return removed


def _is_left_over(entry: os.DirEntry[str]) -> bool:
    try:
        found = entry.stat(follow_symlinks=False)
        if not stat.S_ISSOCK(found.st_mode):
            return False
        if entry.name.endswith(NOT_YET) and time.time() - found.st_mtime < ABANDONED_S:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            # A replica that does not accept, for it hangs, has a full queue: not an end, either.
            probe.setblocking(False)
            probe.connect(entry.path)
    except ConnectionRefusedError:
        return True
    except OSError as error:
        logger.debug("a socket is left alone: %s: %s", entry.path, error)
    return False
