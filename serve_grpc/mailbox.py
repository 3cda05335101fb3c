"""Functions to another event loop, in order, with one wake-up for a whole burst.

Waking a loop from another thread costs a system call and often a switch of the interpreter lock;
paying it once for all frames of a message keeps a hop between threads affordable. Invariant: none
of them runs inside another one. Python may run a finalizer wherever something is allocated, and a
finalizer may end a call, or make one; it would change state that is being changed.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any, TypeVar

from serve_grpc.foreign import is_interrupt

__all__ = ["Mailbox", "mailbox_of"]

T = TypeVar("T")


class Mailbox:
    """Runs functions on `loop`. `post` is safe from any thread; order is kept for each poster."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weak, because the table below maps loops to mailboxes for as long as the loop lives.
        self._loop_ref = weakref.ref(loop)
        self._thread_id = 0  # known from the first drain on; until then everything is posted
        self._items: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_scheduled = False
        self._is_busy = False

    def __repr__(self) -> str:
        return f"<Mailbox of {self._loop_ref()!r}, {len(self._items)} waiting>"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that functions run on.

        Raises:
            RuntimeError: It is gone.
        """
        loop = self._loop_ref()
        if loop is None:
            raise RuntimeError("Event loop is closed")
        return loop

    def running_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that this code runs on; this one is told by its thread, which is quicker.

        Before CPython 3.12, asking asyncio for the running loop costs a system call (getpid).

        Raises:
            RuntimeError: It runs on none.
        """
        loop = self._loop_ref()
        if get_ident() == self._thread_id and loop is not None and loop.is_running():
            return loop
        return asyncio.get_running_loop()

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function(*args)` on the loop soon.

        Raises:
            RuntimeError: The loop is closed.
        """
        self._items.append((function, args))
        # The drain clears the flag before it looks for items, so whoever sees it set knows that
        # a drain is still to come.
        if not self._is_scheduled:
            try:
                self._schedule()
            except RuntimeError:
                # The loop is closed and runs nothing any more; what waits would be held for nobody.
                self._is_scheduled = False
                self._items.clear()
                raise

    def _schedule(self) -> None:
        self._is_scheduled = True
        # The items are of many requests. In the context of whoever happens to come first, tasks
        # that they start would see its variables: its trace, and the user's own.
        self.loop.call_soon_threadsafe(self._drain, context=contextvars.Context())

    def run(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function(*args)` now if this is the loop's own thread, else `post` it.

        It is posted as well while others wait, or while one runs.
        """
        loop = self._loop_ref()
        if (
            get_ident() == self._thread_id
            and not self._items
            and not self._is_busy
            and loop is not None
            and loop.is_running()
        ):
            self._is_busy = True  # as `enter`, without a call more for each item of a stream
            try:
                function(*args)
            finally:
                self._is_busy = False
        else:
            self.post(function, *args)

    def enter(self, function: Callable[..., T], *args: Any) -> T:
        """Run `function(*args)` now, as one that was posted; only on the loop."""
        was_busy, self._is_busy = self._is_busy, True
        try:
            return function(*args)
        finally:
            self._is_busy = was_busy

    def call_later(
        self, delay_s: float, function: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        """As the loop's own; the function runs as one that was posted. Only on the loop."""
        return self.loop.call_later(delay_s, self.enter, function, *args)

    def _drain(self) -> None:
        self._thread_id = get_ident()
        self._is_scheduled = False
        self._is_busy = True
        try:
            # Those that are here now: what they post has its turn after the loop's I/O.
            for _ in range(len(self._items)):
                function, args = self._items.popleft()
                try:
                    function(*args)
                except BaseException as error:
                    if is_interrupt(error):
                        raise
                    self.loop.call_exception_handler(
                        {"message": f"error in {function!r} posted to a loop", "exception": error}
                    )
        finally:
            self._is_busy = False
            if self._items and not self._is_scheduled:
                self._schedule()  # an interrupt does not cost the others their turn


_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = (
    weakref.WeakKeyDictionary()
)
_mailboxes_lock = threading.Lock()


def mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    """The one mailbox of a loop."""
    mailbox = _mailboxes.get(loop)
    if mailbox is None:
        with _mailboxes_lock:
            mailbox = _mailboxes.get(loop)
            if mailbox is None:
                mailbox = _mailboxes[loop] = Mailbox(loop)
    return mailbox
