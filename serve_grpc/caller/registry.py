"""The router of ours beside each of Serve's: one for each, found by every handle that shares it.

Copies of one handle are a family; a family that is shut down leaves a shared router to the others.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from serve_grpc._serve.routers import router_adapter
from serve_grpc.caller.router import Router
from serve_grpc.config import settings

__all__ = ["UNREACHABLE", "HandleFamily", "known_router", "router_of", "transport_of"]

SHUT_DOWN = "the handle was shut down"
UNREACHABLE = "cannot be reached from here (Ray Client or local testing mode)"

_routers: weakref.WeakKeyDictionary[Any, Router] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def router_of(serve_router: Any, handle_counter: Any) -> Router | None:
    """Ours beside Serve's; None where Serve's has no replicas, as in local testing mode.

    Args:
        serve_router: The handle's `_router`.
        handle_counter: The handle's `request_counter`, which its copies share.
    """
    with _lock:
        router = _routers.get(serve_router)
        if router is None:
            adapter = router_adapter(serve_router, handle_counter)
            if adapter is None:
                return None
            router = _routers[serve_router] = Router(adapter, settings)
            # The connections know the router; without this they would keep it for ever.
            finalizer = weakref.finalize(serve_router, _close, router)
            finalizer.atexit = False
        return router


def known_router(serve_router: Any) -> Router | None:
    """Ours beside Serve's if there is one."""
    with _lock:
        return _routers.get(serve_router)


def transport_of(router: Router | None, is_by_reference: bool, fallback_reason: str | None) -> str:
    """What calls travel over, in one of the words of `HandleStatistics.transport`.

    Args:
        router: Of calls by value; None if there is none.
        is_by_reference: Whether the handle's options say so.
        fallback_reason: Why calls by value go over Serve's own transport, or None.
    """
    if is_by_reference and (router is None or not router.is_used):
        return "by reference"
    if fallback_reason is not None:
        return "Serve's gRPC"
    return "serve_grpc" if router is not None and router.feed.is_ready else "undecided"


def _close(router: Router) -> None:
    try:
        router.mailbox.post(router.close, "its handles are gone")
    except RuntimeError:
        return  # its loop is closed


class HandleFamily:
    """What a handle and its copies share.

    Attributes:
        owns_router: Whether their router serves no other handle.
        is_shut_down: Whether one of them was shut down, and with it all.
        said: What was logged once.
    """

    def __init__(self) -> None:
        self.owns_router = True
        self.is_shut_down = False
        self.said: set[str] = set()
        self._handles: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def add(self, handle: Any) -> None:
        """One more copy."""
        with self._lock:
            self._handles.add(handle)

    def shut_down(self, router: Router) -> None:
        """Let later calls of all copies fail."""
        self.is_shut_down = True
        if self.owns_router:
            router.mailbox.run(router.close, SHUT_DOWN)
            return
        with self._lock:
            handles = tuple(self._handles)
        for handle in handles:
            handle._data_router = router.closed_twin(SHUT_DOWN)
