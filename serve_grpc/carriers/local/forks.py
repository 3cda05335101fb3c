"""Sockets that a forked child of this process lets go of at once.

A child has a copy of every descriptor. If it kept those of links, a peer would not hear of this
process's death while the child lives; and a dead replica would seem to listen.
"""

from __future__ import annotations

import os
import socket
import weakref

__all__ = ["keep_from_children"]

_sockets: weakref.WeakValueDictionary[int, socket.socket] = weakref.WeakValueDictionary()


def keep_from_children(sock: socket.socket) -> None:
    """Close a socket in each child that is forked while it is open here."""
    _sockets[id(sock)] = sock


def _close() -> None:
    # Not `iter`: another thread may have been in the midst of adding one.
    for found in _sockets.valuerefs():
        sock = found()
        if sock is not None and sock.fileno() >= 0:
            # Not `close`, which waits for the event loop that watches it, and that is the parent's.
            os.close(sock.detach())


os.register_at_fork(after_in_child=_close)
