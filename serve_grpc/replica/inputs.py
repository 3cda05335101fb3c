"""The streams among the arguments of a request: put in their places, fed, and cut off at its end.

Made and fed on the replica's main loop; placed, and cut off, on the user's. Invariant: from the
moment the code of a request is out, or its request is cancelled, none of its inputs keeps an item.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import RemoteException
from serve_grpc.errors import RequestStreamError, SerializationError, ServeGrpcError
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.input_items import InboundItem
from serve_grpc.protocol.status import error_from_message
from serve_grpc.request_stream import RequestStream
from serve_grpc.streams.inbox import Inbox, Stop

__all__ = ["Inputs", "InvalidRequestError", "stream_error"]


class InvalidRequestError(ServeGrpcError):
    """What came makes no sense; its caller gets `ReplicaError`."""


class Inputs:
    """The inputs of one request.

    Args:
        places: Where among the arguments they belong, in the order of their numbers.
        serializer: Name of the request's.
        window: Items and bytes that the caller may send ahead, of each.
        grant: As of `Inbox`, with the number of the input in front; from any thread.
        load_error: As of `Inbox`.
    """

    def __init__(
        self,
        places: Sequence[InputPlace],
        serializer: str,
        window: tuple[int, int],
        grant: Callable[[int, int, int, bool], None],
        load_error: Callable[[Error], BaseException],
    ) -> None:
        self._places = places
        self._serializer = serializer
        self._inboxes = [
            Inbox(serializer, window, functools.partial(grant, number), load_error)
            for number in range(len(places))
        ]

    def __repr__(self) -> str:
        return f"<Inputs {self._inboxes}>"

    def feed(self, item: InboundItem) -> None:
        """Take what came."""
        self._inboxes[item.number].feed(item)

    def cut_off(self, stop: Stop = Stop.CUT_OFF) -> None:
        """The request was cancelled, or is over: wake who waits, and drop what is here."""
        for inbox in self._inboxes:
            inbox.cut_off(stop)

    def placed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with a `RequestStream` in the place of each input.

        Args:
            args, kwargs: As the payload had them.

        Raises:
            InvalidRequestError: A place is none, or not free.
        """
        is_noop = self._serializer == "noop"  # it has one argument, which is the stream
        placed: list[Any] = [None] if is_noop else list(args)
        named = dict(kwargs)
        for place, inbox in zip(self._places, self._inboxes, strict=True):
            stream: RequestStream[Any] = RequestStream(inbox)
            position = place.position
            if place.name and place.name not in named and not is_noop:
                named[place.name] = stream
            elif not place.name and position < len(placed) and placed[position] is None:
                placed[position] = stream
            else:
                where = repr(place.name) if place.name else f"at position {position}"
                raise InvalidRequestError(f"a stream cannot be the argument {where}")
        return tuple(placed), named


def stream_error(error: Error, *, request_id: str, may_unpickle: bool) -> RequestStreamError:
    """What a handler raises for the failed end of an input; may import the exception's module.

    Args:
        error: As the caller told it.
        request_id: Of the call.
        may_unpickle: Whether an exception that came pickled may be loaded.
    """
    cause: BaseException
    if error.code == Error.USER_EXCEPTION:
        remote = RemoteException(error, request_id=request_id, may_unpickle=may_unpickle)
        cause = remote.load().cause
    elif error.code == Error.CANCELLED:
        cause = asyncio.CancelledError(error.message)
    elif error.code == Error.SERIALIZATION:
        cause = SerializationError(
            error.message,
            serializer=error.serializer,
            direction=error.direction,
            request_id=request_id,
        )
    else:
        cause = error_from_message(error, request_id=request_id, replica_id="")
    told = error.traceback or f"{error.type_name or type(cause).__name__}: {cause}"
    if error.code == Error.MESSAGE_TOO_LARGE:
        told = (
            f"an item of {error.size} bytes is over the limit of {error.limit}; make smaller items"
        )
    # Ray takes a line that begins so for the header of a traceback of this process.
    told = told.replace("Traceback (most recent call last):", "Where it failed:")
    text = f"a stream among the arguments failed at its source:\n{told}"
    return RequestStreamError(text, cause=cause, request_id=request_id)
