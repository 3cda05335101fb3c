"""One stream among the arguments of a request, at its replica: what came, and who waits for it.

Items are kept as they came. They come on the replica's main loop, are consumed on any loop or in
any thread, and whoever stops the stream does so from anywhere. Invariants: items are written before
who waits is woken (`waiters`); once the stream is stopped none is kept, and nobody waits.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.payload import Payload
from serve_grpc.protocol.flow import ConsumerWindow
from serve_grpc.protocol.input_items import InboundItem, InputKind
from serve_grpc.serialization import Serializer, get_serializer
from serve_grpc.streams.waiters import Waiters

__all__ = ["Grant", "Inbox", "Stop"]


Grant = Callable[[int, int, bool], None]
"""Tells the caller that it may send so many items and bytes more, and whether no more are wanted;
from any thread."""


class Stop(enum.Enum):
    """Why an input is over before its end."""

    CLOSED = "the handler closed the stream"
    CUT_OFF = "the call that had the stream as an argument was cancelled"
    OVER = "the call that had the stream as an argument is over"


class Inbox:
    """One input of a request.

    Args:
        serializer: Name of the one that wrote the items.
        window: How many items and bytes the caller may send ahead.
        grant: Where credit goes.
        load_error: Makes an exception of what the caller's end failed with; may import modules.

    Attributes:
        stop: Why it is over before its end; None if it is not.
    """

    def __init__(
        self,
        serializer: str,
        window: tuple[int, int],
        grant: Grant,
        load_error: Callable[[Error], BaseException],
    ) -> None:
        self._serializer = serializer
        self._window, self._window_lock = ConsumerWindow(*window), threading.Lock()
        self._grant: Grant = grant
        self._load_error = load_error
        self._items: deque[Payload] = deque()
        self._last: InboundItem | None = None
        self._waiters = Waiters()
        self.stop: Stop | None = None

    def __repr__(self) -> str:
        state = self.stop.name.lower() if self.stop else "ended" if self._last else "open"
        return f"<Inbox {state}, {len(self._items)} items, {self._waiters!r}>"

    @property
    def serializer(self) -> Serializer:
        """Of the items.

        Raises:
            ValueError: There is none of that name.
        """
        return get_serializer(self._serializer)

    # ------------------------------------------------------------ the transport's side

    def feed(self, item: InboundItem) -> None:
        """Take what came, or drop it if nobody wants it; on the replica's main loop."""
        if self._last is not None:
            return  # an item was too large, which ended the stream before its caller knew
        if item.kind == _ITEM:
            self._items.append(item.payload)
        else:
            self._last = item
            if item.error is not None:
                self._grant(0, 0, True)
        self._tell()

    def cut_off(self, stop: Stop = Stop.CUT_OFF) -> None:
        """The call was cancelled, or is over, and with it the stream; from any thread."""
        if self.stop is None or stop is Stop.CUT_OFF:
            self.stop = stop
        self._grant = _tell_nobody  # a handler that keeps the stream must not keep the session
        self._tell()

    def _tell(self) -> None:
        # Looked at after the append, as `stop` is written before the look at the items.
        if self.stop is not None:
            self._items.clear()
        self._waiters.wake()

    # ------------------------------------------------------------ the consumer's side

    @property
    def has_item(self) -> bool:
        """Whether an item is here."""
        return bool(self._items)

    async def wait_item(self) -> bool:
        """Return True when an item is there, False if the stream is over; on any loop."""
        await self._waiters.wait(self._has_news)
        # Looked at last: the item before the end comes at the same time as the end.
        return bool(self._items)

    def wait_item_blocking(self) -> bool:
        """As `wait_item`, for a thread."""
        self._waiters.wait_blocking(self._has_news)
        return bool(self._items)

    def _has_news(self) -> bool:
        return bool(self._items) or self._last is not None or self.stop is not None

    def take(self) -> Payload | None:
        """The next item as it came, to be counted by `took`; None if there is none."""
        try:
            return self._items.popleft()
        except IndexError:
            return None

    def put_back(self, item: Payload) -> None:
        """Make an item that was taken, and not counted, the next one again."""
        self._items.appendleft(item)
        self._tell()

    def took(self, size: int) -> None:
        """Count an item of `size` bytes as consumed; grants credit once half a window is due."""
        with self._window_lock:  # threads may share the work on one stream
            due = self._window.took(size)
        if due is not None:
            self._grant(*due, False)

    def close(self) -> None:
        """No more is wanted: the caller is told, and items are dropped; from any thread."""
        if self.stop is None:
            self.stop = Stop.CLOSED
            self._grant(0, 0, True)
            self._tell()

    @property
    def error(self) -> Error | None:
        """How it ended, for who passes it on: None if as it should, or not yet."""
        if self.stop is not None:
            return Error(code=Error.CANCELLED, message=self.stop.value)
        return self._last.error if self._last is not None else None

    def failure(self) -> BaseException | None:
        """What its consumer raises instead of an end, a new one each time; None for an end."""
        error = self.error
        return None if error is None else self._load_error(error)


def _tell_nobody(*_: object) -> None:
    """Nobody is left to be told."""


_ITEM = InputKind.ITEM
