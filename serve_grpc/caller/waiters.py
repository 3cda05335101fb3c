"""Who waits for a call: a task on an event loop, by a future, or a thread, by an event."""

from __future__ import annotations

import asyncio
import threading

from serve_grpc.mailbox import mailbox_of

__all__ = ["Waiter", "wake"]

Waiter = asyncio.Future[None] | threading.Event


def wake(waiter: Waiter, transport_loop: asyncio.AbstractEventLoop) -> None:
    """Let who waits look again; called on the transport's loop."""
    if isinstance(waiter, threading.Event):
        waiter.set()
        return
    loop = waiter.get_loop()
    if loop is transport_loop:
        if not waiter.done():
            waiter.set_result(None)
        return
    try:
        mailbox_of(loop).post(_resolve, waiter)
    except RuntimeError:
        return  # the loop is closed, and with it whoever waited


def _resolve(future: asyncio.Future[None]) -> None:
    # Done: the task that waited was cancelled before this turn.
    if not future.done():
        future.set_result(None)
