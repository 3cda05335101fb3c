"""Serializers by name: how arguments and results become bytes, and nothing else.

Status, errors and ids never pass through here. A request is the pair `(args, kwargs)`; a response
or stream item is one value. "noop" hands bytes through: one positional bytes argument, a bytes
result.
"""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import orjson

from serve_grpc import pickling
from serve_grpc._serve.references import cloudpickled, pickled
from serve_grpc.errors import SerializationError
from serve_grpc.foreign import is_interrupt, name_of, text_of
from serve_grpc.misfits import innermost_misfit
from serve_grpc.payload import LARGE_BYTES, Memory, Payload, Segments, joined, pieces
from serve_grpc.pickling import PICKLE_PROTOCOL

__all__ = [
    "PICKLES",
    "Serializer",
    "get_serializer",
    "register_serializer",
    "registered_serializers",
    "restore_serializers",
    "serializer_names",
]


@dataclass(frozen=True)
class Serializer:
    """A named pair of functions.

    Attributes:
        name: Lower-case name, as given to `handle.options(request_serialization=...)`.
        dumps: Value to bytes, in several pieces where joining them would cost a copy.
        loads: The reverse.
        reads_pieces: Whether `loads` takes a payload in pieces; else they are joined for it.
        writes_into: As `dumps`, with a `Memory` for large pieces; None if it cannot.
    """

    name: str
    dumps: Callable[[Any], Payload]
    loads: Callable[[Any], Any]
    reads_pieces: bool = False
    writes_into: Callable[[Any, Memory], Payload] | None = None

    def dump_request(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], memory: Memory | None = None
    ) -> Payload:
        """Serialize a call's arguments.

        Args:
            args, kwargs: Values of any kind.
            memory: Where large pieces go; None for the heap.

        Raises:
            SerializationError: An argument does not fit this serializer.
        """
        try:
            if self.name == "noop":
                return _kept(_single_bytes(args, kwargs), memory)
            value = args, kwargs
            return self.dumps(value) if memory is None else self._dumps_into(value, memory)
        # Values and pickles run their classes' code: whatever it raises, SystemExit too, is the
        # error of this call (`foreign`). So in the methods below.
        except BaseException as error:
            values = (*args, *kwargs.values())
            raise self._error("request", "serialize", values, error, are_arguments=True) from error

    def load_request(self, payload: Payload) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The reverse of `dump_request`.

        Raises:
            SerializationError: The bytes are not a pair of a list and a map with string keys.
        """
        try:
            if self.name == "noop":
                return (joined(payload),), {}
            args, kwargs = self._loads(payload)
            if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
                raise TypeError("a request is a pair of a list and a map")
            if kwargs and not all(isinstance(name, str) for name in kwargs):
                raise TypeError("names of keyword arguments are strings")
            return tuple(args), kwargs
        except BaseException as error:
            raise self._error("request", "deserialize", (), error) from error

    def dump_response(self, value: Any, memory: Memory | None = None) -> Payload:
        """Serialize a result or a stream item; `memory` as in `dump_request`.

        Raises:
            SerializationError: The value does not fit this serializer.
        """
        try:
            return self.dumps(value) if memory is None else self._dumps_into(value, memory)
        except BaseException as error:
            raise self._error("response", "serialize", (value,), error) from error

    def load_response(self, payload: Payload) -> Any:
        """The reverse of `dump_response`.

        Raises:
            SerializationError: The bytes are not what this serializer writes.
        """
        try:
            return self._loads(payload)
        except BaseException as error:
            raise self._error("response", "deserialize", (), error) from error

    def dump_item(self, value: Any, memory: Memory | None = None) -> Payload:
        """Serialize an item of a stream that is an argument; as `dump_response`."""
        try:
            return self.dumps(value) if memory is None else self._dumps_into(value, memory)
        except BaseException as error:
            raise self._error("request", "serialize", (value,), error) from error

    def load_item(self, payload: Payload) -> Any:
        """The reverse of `dump_item`; as `load_response`."""
        try:
            return self._loads(payload)
        except BaseException as error:
            raise self._error("request", "deserialize", (), error) from error

    def _dumps_into(self, value: Any, memory: Memory) -> Payload:
        if self.writes_into is not None:
            return self.writes_into(value, memory)
        return _kept(self.dumps(value), memory)

    def _loads(self, payload: Payload) -> Any:
        return self.loads(payload if self.reads_pieces else joined(payload))

    def _error(
        self,
        direction: str,
        verb: str,
        values: tuple[Any, ...],
        cause: BaseException,
        *,
        are_arguments: bool = False,
    ) -> SerializationError:
        if is_interrupt(cause):  # Ctrl-C is the program's, whatever was being done
            raise cause
        try:
            what = self._what(values, cause)
        except BaseException as reason:  # the value's own code was asked what it consists of
            if is_interrupt(reason):
                raise
            what = " a value that cannot be looked at"
        hint = f" ({self._advice(values, are_arguments)})" if values else ""
        return SerializationError(
            f"serializer {self.name!r} could not {verb}{what} in the {direction}: "
            f"{name_of(cause)}: {text_of(cause)}{hint}",
            serializer=self.name,
            direction=direction,
        )

    def _what(self, values: tuple[Any, ...], cause: BaseException) -> str:
        # Each library has its own class for it, and this word in the text.
        if "recursion" in f"{name_of(cause)} {text_of(cause)}".lower():
            return " a value that is nested too deep"
        for value in values:
            if not self._takes(value):
                return f" {innermost_misfit(value, self._takes)}"
        return ""

    def _takes(self, value: Any) -> bool:
        try:
            self.dumps(value)
        except BaseException as error:
            if is_interrupt(error):
                raise
            return False
        return True

    def _advice(self, values: tuple[Any, ...], are_arguments: bool) -> str:
        for value in values if are_arguments else ():
            if issubclass(type(value), (Iterator, AsyncIterator)) and not self._takes(value):
                how = "async for" if issubclass(type(value), AsyncIterator) else "for"
                return f"of iterators, generators alone are streams: pass `(x {how} x in it)`"
        # In this order: who chose a serializer that is no pickle may not want one.
        if self.name == "orjson" and _serializers["msgpack"]._takes(values):
            return "'msgpack' takes it"
        if self.name != "cloudpickle" and _serializers["cloudpickle"]._takes(values):
            return "'cloudpickle' takes it"
        return "no serializer takes it: for 'cloudpickle' it must be picklable"


def _kept(payload: Payload, memory: Memory | None) -> Payload:
    """The same bytes, in `memory` if they are many."""
    if memory is None or len(payload) < LARGE_BYTES:
        return payload
    return Segments([memory.keep(piece) or piece for piece in pieces(payload)])


def _single_bytes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    if len(args) != 1 or kwargs or not isinstance(args[0], bytes):
        raise TypeError("it takes exactly one positional argument, of type bytes")
    return args[0]


class _PlainDataPickler(pickle.Pickler):
    """Pickles built-in data; `reducer_override` sees, and refuses, everything else."""

    # C's pickler asks it after the exact built-in types (`save` in CPython's _pickle.c), so plain
    # data pays nothing for it, and a subclass of `dict` is seen.

    def reducer_override(self, obj: Any) -> Any:
        raise _NotPlainData


class _NotPlainData(Exception):
    """Not an error: this value needs cloudpickle."""


_ATOMS = frozenset({str, bytes, int, float, bool, type(None)})
_DEEP, _SHALLOW, _SHALLOW_AND_LARGE = 0, 1, 2


def _shape(value: Any) -> int:
    """Whether `value` is an atom, or a tuple of atoms and flat containers of atoms, as most
    arguments and results are, and whether one of them is large.

    `pickle.dumps` alone needs a third of the time for small ones.
    """
    shape = _SHALLOW
    for part in value if type(value) is tuple else (value,):
        kind = type(part)
        if kind is tuple or kind is list:
            atoms = part
        elif kind is not dict:
            atoms = (part,)
        elif part:
            atoms = [*part, *part.values()]
        else:
            continue
        # By exact type: a subclass may pickle itself in any way.
        for atom in atoms:
            kind = type(atom)
            if kind not in _ATOMS:
                return _DEEP
            if (kind is str or kind is bytes) and len(atom) >= LARGE_BYTES:
                shape = _SHALLOW_AND_LARGE
    return shape


def _cloudpickle_dumps(value: Any, memory: Memory | None = None) -> Payload:
    return _pickle_plainly(value, memory) or cloudpickled(value, memory)  # no pickle is empty


def _pickle_dumps(value: Any, memory: Memory | None = None) -> Payload:
    return _pickle_plainly(value, memory) or pickled(value, memory)


def _pickle_plainly(value: Any, memory: Memory | None) -> Payload | None:
    # For built-in data the C pickler writes the same bytes as cloudpickle at a fraction of its
    # cost (docs/decisions/0003-serializers.md), and there are no ObjectRefs to look for.
    if _shape(value) == _SHALLOW:  # a large one is better written in pieces, below
        return pickle.dumps(value, protocol=PICKLE_PROTOCOL)
    try:
        return pickling.dump(value, _PlainDataPickler, memory)
    except _NotPlainData:
        return None


def _msgpack_dumps(value: Any) -> Payload:
    # The packer writes a level more than the unpacker reads, and what is sent must be readable. So
    # a level is added, which is the first byte; what is too deep with it is read as a trial.
    try:
        packed = msgpack.packb((value,), use_bin_type=True)
    except ValueError as too_deep:
        packed = msgpack.packb(value, use_bin_type=True)
        try:
            _msgpack_loads(packed)
        except ValueError:
            raise too_deep from None
        return bytes(packed)
    if len(packed) < LARGE_BYTES:
        return bytes(packed[1:])
    return Segments((memoryview(packed)[1:],))


def _msgpack_loads(payload: Any) -> Any:
    # Map keys of any type are allowed, as in Ray Serve's own "msgpack"; msgpack's own default is
    # text and bytes only.
    try:
        return msgpack.unpackb(payload, raw=False, strict_map_key=False)
    except TypeError:  # a tuple in a key was written as an array, and a list is no key
        return msgpack.unpackb(
            payload, raw=False, strict_map_key=False, object_pairs_hook=_with_tuples_in_keys
        )


def _with_tuples_in_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_as_tuple(key) if type(key) is list else key: value for key, value in pairs}


def _as_tuple(key: list[Any]) -> Any:
    # By way of bytes: as deep as msgpack reads, which is deeper than Python may call itself.
    return msgpack.unpackb(msgpack.packb(key), raw=False, use_list=False)


def _bytes_or_refuse(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("only bytes pass")
    return value


_serializers: dict[str, Serializer] = {
    s.name: s
    for s in (
        Serializer("cloudpickle", _cloudpickle_dumps, pickling.load, True, _cloudpickle_dumps),
        Serializer("pickle", _pickle_dumps, pickling.load, True, _pickle_dumps),
        Serializer("msgpack", _msgpack_dumps, _msgpack_loads),
        Serializer("orjson", orjson.dumps, orjson.loads),
        Serializer("noop", _bytes_or_refuse, bytes),
    )
}
_BUILT_IN = frozenset(_serializers)
PICKLES = frozenset({"cloudpickle", "pickle"})
"""Serializers whose payloads are pickles."""


def serializer_names() -> list[str]:
    """Names that `handle.options` takes now, sorted."""
    return sorted(_serializers)


def get_serializer(name: str) -> Serializer:
    """The serializer of this name; case does not matter, as in Ray Serve.

    Raises:
        TypeError: `name` is not a string.
        ValueError: No such serializer; the text lists the names.
    """
    serializer = _serializers.get(name)
    if serializer is not None:
        return serializer
    # Only now: nearly all calls name a serializer as the table does.
    if not isinstance(name, str):
        raise TypeError(f"a serializer is named by a string, got {type(name).__name__}")
    serializer = _serializers.get(name.lower())
    if serializer is None:
        raise ValueError(
            f"unknown serializer {name!r}; known are {', '.join(serializer_names())}. "
            "`serve_grpc.register_serializer` adds one."
        )
    return serializer


def register_serializer(
    name: str, dumps: Callable[[Any], bytes], loads: Callable[[Any], Any]
) -> None:
    """Add a serializer, or replace one added before.

    Call it before the deployments are decorated or enabled: their replicas then get every
    serializer registered so far. In a process that only calls, register it there too.

    Args:
        name: Case does not matter.
        dumps: Value to bytes. A request arrives as the pair `(args: tuple, kwargs: dict)`.
        loads: Bytes to value. For a request it may return a list for the tuple.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The name is empty or belongs to a built-in serializer.
    """
    if not isinstance(name, str):
        raise TypeError(f"a serializer is named by a string, got {type(name).__name__}")
    if not callable(dumps) or not callable(loads):
        raise TypeError("dumps and loads must be callable")
    key = name.lower()
    if not key or key in _BUILT_IN:
        raise ValueError(f"the name {name!r} is empty or taken by a built-in serializer")
    _serializers[key] = Serializer(key, dumps, loads)


def registered_serializers() -> dict[str, Serializer]:
    """Those that `register_serializer` added, by name."""
    return {name: s for name, s in _serializers.items() if name not in _BUILT_IN}


def restore_serializers(registered: dict[str, Serializer]) -> None:
    """Add serializers of another process; what was registered here stays."""
    for name, serializer in registered.items():
        _serializers.setdefault(name, serializer)
