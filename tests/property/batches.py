"""Strategies: batches of both kinds with any content, and damage done to a message."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from serve_grpc._generated.replica_pb2 import CallerBatch, ReplicaBatch

# Ids near each other, so that frames of one batch speak of the same calls, and the extremes.
_IDS = st.integers(0, 6) | st.sampled_from([2**32, 2**63, 2**64 - 1])
_NUMBERS = {
    FieldDescriptor.CPPTYPE_UINT64: _IDS,
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 6) | st.just(2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    # Enums of proto3 are open: a newer peer may send a value that has no name here.
    FieldDescriptor.CPPTYPE_ENUM: st.integers(0, 9) | st.sampled_from([-1, 2**31 - 1]),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}
_TEXT = st.text(max_size=8)
_BYTES = st.binary(max_size=40)


def _content_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(*map(_value_of, field.message_type.fields), max_size=4)
    return st.lists(_value_of(field), max_size=4) if field.is_repeated else _value_of(field)


def _value_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type._concrete_class)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _BYTES if field.type == FieldDescriptor.TYPE_BYTES else _TEXT
    return _NUMBERS[field.cpp_type]


def messages(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Messages of `kind` with any of their fields set to anything."""
    fields = {field.name: _content_of(field) for field in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: kind(**values))


caller_batches = st.deferred(lambda: messages(CallerBatch))
replica_batches = st.deferred(lambda: messages(ReplicaBatch))


@st.composite
def damaged(draw: st.DrawFn, message: bytes) -> bytes:
    """`message` cut short, or with some bytes changed, put in or taken out."""
    data = bytearray(message)
    if draw(st.booleans()):
        return bytes(data[: draw(st.integers(0, len(data)))])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["set", "insert", "delete"]))
        if change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=4))
        elif place < len(data):
            if change == "set":
                data[place] = draw(st.integers(0, 255))
            else:
                del data[place]
    return bytes(data)
