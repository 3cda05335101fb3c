"""The streams among the arguments of one call, from where their items are made to its session.

Items that were sent are kept until the replica's first news of the call: one that turned the call
away, or did not read it, has not seen them, and the next replica gets them all. On the transport's
loop, but for what is said of single methods. Invariants: items of an input leave in order, within
its credit; nothing follows its end; whatever becomes of the call, each source is stopped once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.allow_list import takes_pickle
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.input_way import InputWay, Sender
from serve_grpc.caller.item_writer import Entry, Terms
from serve_grpc.caller.outcomes import GivenUp
from serve_grpc.caller.sources import LoopSource, Source
from serve_grpc.config import LOGGER_NAME
from serve_grpc.foreign import run_foreign
from serve_grpc.mailbox import Mailbox
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InputKind

__all__ = ["InputArgument", "Inputs", "inputs_among", "taken_out"]

logger = logging.getLogger(LOGGER_NAME)

LOOK_S = 1.0
"""Between two looks whether the loop of a generator is closed: a loop tells nobody of its end."""
_ITEM = InputKind.ITEM  # looking it up on the class of an enum is a call on CPython 3.10 and 3.11
LOST = Entry(
    InputKind.ERROR,
    b"",
    Error(
        code=Error.USER_EXCEPTION,
        type_name="builtins.RuntimeError",
        message="the event loop of the caller's generator was closed",
    ),
)


class _Input:
    """One of them.

    Attributes:
        number: Of it, among those of its call.
        source: Makes its items.
        unsent, sent: Entries that wait for credit, and those of which no replica has told anything.
        is_over: Its end is among these, or has left, or the handler wants no more.
    """

    __slots__ = ("is_over", "number", "sent", "source", "unsent")

    def __init__(self, number: int, source: Source) -> None:
        self.number = number
        self.source = source
        self.unsent: deque[Entry] = deque()
        self.sent: list[Entry] = []
        self.is_over = False


class Inputs:
    """Those of one call. Made in the thread of `remote()`.

    Args:
        places: Where they stand among the arguments.
        sources: What makes the items of each.
        mailbox: Of the transport's loop.

    Attributes:
        places: As given.
        has_sent: Whether anything of them was given to a session.
    """

    def __init__(
        self, places: tuple[InputPlace, ...], sources: Sequence[Source], mailbox: Mailbox
    ) -> None:
        self.places = places
        self.has_sent = False
        self._mailbox = mailbox
        self._inputs = [_Input(number, source) for number, source in enumerate(sources)]
        self._owner: Sender | None = None
        self._way: InputWay | None = None
        self._credit: tuple[int, int] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._is_read = False
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Inputs {[each.source for each in self._inputs]!r}>"

    def __del__(self) -> None:
        # Of a call that never was: Serve's router had it, and nobody has asked for its inputs.
        if not self._is_closed:
            sources = [each.source for each in self._inputs]
            with contextlib.suppress(RuntimeError):  # the transport's loop is closed
                self._mailbox.post(_stop_all, sources)

    # ------------------------------------------------------------ the call

    def belong_to(self, delivery: Sender) -> None:
        """The first one's end is theirs; others, of Serve's router, may send the call for it."""
        if self._owner is None:
            self._owner = delivery

    @property
    def is_spent(self) -> bool:
        """Whether a replica has read of them, so that no other one can be sent the call."""
        return self.has_sent and self._is_read

    def on_sent(self, delivery: Sender, connection: Connection, call_id: int) -> None:
        """The call was sent, perhaps again."""
        self._way = connection.inputs_of(delivery, call_id)
        credit = self._way.credit
        self._is_read = False
        for each in self._inputs:
            each.unsent.extendleft(reversed(each.sent))
            each.sent.clear()
        if self._credit is None:
            self._credit = credit
            self._start(connection)
        else:
            self._match(*credit)
        for each in self._inputs:
            self._flush(each)
        # In the loop's next turn: what generators of this loop make at once rides along.
        self._way.kick_request()

    def _match(self, items: int, bytes_: int) -> None:
        """Let sources make what an earlier replica did not give credit for, and this one does."""
        assert self._credit is not None
        old_items, old_bytes = self._credit
        self._credit = max(items, old_items), max(bytes_, old_bytes)
        if self._credit != (old_items, old_bytes):
            for each in self._inputs:
                each.source.grant(max(0, items - old_items), max(0, bytes_ - old_bytes))

    def _start(self, connection: Connection) -> None:
        assert self._credit is not None
        may_pickle = takes_pickle(connection.serializers)
        terms = Terms(*self._credit, connection.peer_max_message_bytes, may_pickle)
        for each in self._inputs:
            each.source.start(functools.partial(self._post, each), terms)
        if any(isinstance(each.source, LoopSource) for each in self._inputs):
            self._watch = self._mailbox.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        for each in self._inputs:
            if not each.is_over and each.source.is_lost:
                self._put(each, (LOST,))
        if not all(each.is_over for each in self._inputs):
            self._watch = self._mailbox.call_later(LOOK_S, self._look)

    def on_left(self, delivery: Sender) -> None:
        """The call is on its replica no longer."""
        if self._way is not None and self._way.sender is delivery:
            self._way = None

    def on_end(self, delivery: Sender) -> None:
        """A delivery that sends the call has ended; from any thread before it is submitted."""
        self.on_left(delivery)
        if self._owner is delivery:
            self._owner = None
            self._close()

    def _close(self) -> None:
        self._is_closed = True
        if self._watch is not None:
            self._watch.cancel()
        for each in self._inputs:
            self._end(each)

    def _end(self, each: _Input) -> None:
        each.is_over = True
        each.unsent.clear()
        each.sent.clear()
        each.source.stop()

    # ------------------------------------------------------------ the replica's news

    def on_read(self) -> None:
        """The replica has read the request: it will not turn it away any more."""
        if not self._is_read:
            self._is_read = True
            for each in self._inputs:
                each.sent.clear()

    def on_news(self, number: int, items: int, bytes_: int, *, is_closed: bool) -> None:
        """The replica said something of one input."""
        self.on_read()
        each = self._inputs[number]
        if is_closed:
            self._end(each)
        elif not each.is_over or each.unsent:
            each.source.grant(items, bytes_)
            self._flush(each)

    # ------------------------------------------------------------ the items

    def _post(self, each: _Input, entries: Sequence[Entry]) -> None:
        """Take what a source made, items or an end; from any thread."""
        # Items come from a task or a thread of their own. What ends an input may be told by a
        # finalizer, in the midst of anything.
        hand_over = self._mailbox.run if entries[0].kind is _ITEM else self._mailbox.post
        try:
            hand_over(self._put, each, entries)
        except RuntimeError:
            each.source.stop()  # the transport's loop is closed: nobody will take it

    def _put(self, each: _Input, entries: Sequence[Entry]) -> None:
        try:
            if (is_items := entries[0].kind is _ITEM) and each.source.counts_untaken:
                for entry in entries:
                    each.source.taken_over(len(entry.payload))
            if not each.is_over:
                each.is_over = not is_items
                each.unsent.extend(entries)
                self._flush(each)
        except Exception as error:
            # As in `events`: a call that never ends is the worst end.
            run_foreign("log", logger.exception, "could not handle an item of %r", self)
            if self._owner is not None:
                text = f"a stream among the arguments could not be handled: {error!r}"
                self._owner.end(GivenUp(text, may_have_executed=True))

    def _flush(self, each: _Input) -> None:
        way, unsent, number = self._way, each.unsent, each.number
        if way is None or not unsent:
            return
        while unsent and (unsent[0].kind is not _ITEM or way.windows[number].is_open):
            entry = unsent.popleft()
            if not self._is_read:
                each.sent.append(entry)
            self.has_sent = True
            way.send(number, entry)
        way.kick()


def _stop_all(sources: Sequence[Source]) -> None:
    for source in sources:
        source.stop()


class InputArgument:
    """Stands for one of them among arguments that go through Serve's own router.

    Args:
        inputs: All of the call.
        number: Of this one.
    """

    __slots__ = ("inputs", "number")

    def __init__(self, inputs: Inputs, number: int) -> None:
        self.inputs = inputs
        self.number = number

    def __repr__(self) -> str:
        return f"<stream, input {self.number} of its call>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a stream among the arguments travels over serve_grpc's own sessions only: call a "
            "deployment of `serve_grpc.deployment` or `serve_grpc.enable`"
        )


def taken_out(
    args: Sequence[Any], kwargs: dict[str, Any], serializer: str
) -> tuple[tuple[Any, ...], dict[str, Any], Inputs | None]:
    """Arguments as they are serialized, and the inputs among them; None if there are none.

    Args:
        args, kwargs: With an `InputArgument` in the place of each.
        serializer: Name of the request's.
    """
    found = [v for v in (*args, *kwargs.values()) if isinstance(v, InputArgument)]
    if not found:
        return tuple(args), kwargs, None
    # "noop" takes bytes alone, and its request is empty then.
    stand_in = b"" if serializer == "noop" else None
    plain = tuple(stand_in if isinstance(v, InputArgument) else v for v in args)
    named = {name: v for name, v in kwargs.items() if not isinstance(v, InputArgument)}
    return plain, named, found[0].inputs


def inputs_among(args: Sequence[Any], kwargs: dict[str, Any]) -> Inputs:
    """Those that arguments stand for, of which there is one at least."""
    return next(v.inputs for v in (*args, *kwargs.values()) if isinstance(v, InputArgument))
