"""A link to one replica over its Unix socket, made at once or not at all."""

from __future__ import annotations

import socket
import weakref

from serve_grpc.carriers.link import LinkLost
from serve_grpc.carriers.local.link import LocalLink, stranger
from serve_grpc.config import Settings

__all__ = ["dial", "open_links"]

_dialled: weakref.WeakSet[LocalLink] = weakref.WeakSet()


async def dial(path: str, settings: Settings) -> LocalLink:
    """A link to the replica whose socket is at `path`. Waits for nothing.

    Raises:
        LinkLost: Nobody listens there, or too many wait to be let in, or this process may not, or
            who listens is of another user, or no descriptor is left.
    """
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise LinkLost(f"{path}: {error}") from error
    try:
        # A socket of this kind connects at once, or says that the line at the door is full.
        sock.setblocking(False)
        sock.connect(path)
        refused = stranger(sock)
    except OSError as error:
        refused = str(error)
    if refused:
        sock.close()
        raise LinkLost(f"{path}: {refused}")
    link = LocalLink(sock, is_accepted=False)
    _dialled.add(link)
    return link


def open_links() -> list[LocalLink]:
    """Links that this process has dialled and not closed, for who looks for leaks."""
    return [link for link in _dialled if not link.is_closed]
