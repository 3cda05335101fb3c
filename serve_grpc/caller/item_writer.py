"""What an input has to say: items and errors, serialized where its generator runs."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import message_from_exception
from serve_grpc.errors import MessageTooLargeError, ServeGrpcError
from serve_grpc.foreign import is_interrupt, name_of
from serve_grpc.payload import Memory, Payload, with_refs
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.protocol.status import message_from_error
from serve_grpc.serialization import Serializer

__all__ = ["END", "Entry", "ItemError", "ItemWriter", "Terms"]


class Terms(NamedTuple):
    """What is agreed with the replica that gets the call first: the first credit of an input, in
    items and bytes, the largest item, and whether exceptions may travel as pickles.
    """

    items: int
    bytes_: int
    max_message_bytes: int
    may_pickle: bool


class Entry(NamedTuple):
    """What an input has to say. `payload`: the item, or what holds the refs of the error."""

    kind: InputKind
    payload: Payload
    error: Error | None


END = Entry(InputKind.END, b"", None)


class ItemError(Exception):
    """An item cannot travel; `error` says why. The generator itself has not failed."""

    def __init__(self, error: ServeGrpcError) -> None:
        super().__init__(error)
        self.error = error


class ItemWriter:
    """Makes entries of one input.

    Args:
        serializer: Of the request.
        memory: Where large pieces go.
        name: Of the generator, as errors show it.
    """

    def __init__(self, serializer: Serializer, memory: Memory | None, name: str) -> None:
        self.serializer = serializer
        self.memory = memory
        self.name = name

    def item(self, value: Any, terms: Terms) -> Entry:
        """An item; runs the value's own code.

        Raises:
            ItemError: The serializer does not take it, or it is over the limit.
        """
        try:
            payload = self.serializer.dump_item(value, self.memory)
        except ServeGrpcError as error:
            raise ItemError(error) from error
        return self.checked(payload, terms)

    def checked(self, payload: Payload, terms: Terms) -> Entry:
        """An item that is serialized; raises as `item`."""
        size, limit = len(payload), terms.max_message_bytes
        if size > limit:
            raise ItemError(MessageTooLargeError(size, limit, "request"))
        return Entry(InputKind.ITEM, payload, None)

    def failed(self, error: BaseException, terms: Terms) -> Entry:
        """The end of an input that failed with this; runs the exception's own code."""
        if isinstance(error, ItemError):
            return Entry(InputKind.ERROR, b"", message_from_error(error.error))
        refs: list[Any] = []
        try:
            message = message_from_exception(
                error, self.name, may_pickle=terms.may_pickle, refs=refs
            )
        except BaseException as reason:  # what is told of it is its own code, too
            if is_interrupt(reason):
                raise
            why = f"(the exception cannot be shown: {name_of(reason)})"
            message = Error(type_name=name_of(error), message=why, function_name=self.name)
            message.code = Error.USER_EXCEPTION
        if isinstance(error, asyncio.CancelledError):
            message.message = "the caller's generator was cancelled"
        return Entry(InputKind.ERROR, with_refs(b"", refs) if refs else b"", message)
