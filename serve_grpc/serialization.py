"""Serializers by name: how arguments and results become bytes, and nothing else.

Status, errors and ids never pass through here. A request is the pair `(args, kwargs)`; a response
or stream item is one value. "noop" hands bytes through: one positional bytes argument, a bytes
result.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import orjson
from ray import cloudpickle

from serve_grpc.errors import SerializationError

__all__ = [
    "Serializer",
    "get_serializer",
    "register_serializer",
    "registered_serializers",
    "restore_serializers",
    "serializer_names",
]

PICKLE_PROTOCOL = 5


@dataclass(frozen=True)
class Serializer:
    """A named pair of functions.

    Attributes:
        name: Lower-case name, as given to `handle.options(request_serialization=...)`.
        dumps: Value to bytes.
        loads: Bytes, or a memoryview of them, to value.
        hint: What to say to a user whose value does not fit.
    """

    name: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[Any], Any]
    hint: str = "'cloudpickle' takes almost any Python object"

    def dump_request(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Serialize a call's arguments.

        Raises:
            SerializationError: An argument does not fit this serializer.
        """
        try:
            if self.name == "noop":
                return _single_bytes(args, kwargs)
            return self.dumps((args, kwargs))
        except Exception as error:
            raise self._error("request", "serialize", (*args, *kwargs.values()), error) from error

    def load_request(self, payload: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The reverse of `dump_request`.

        Raises:
            SerializationError: The bytes are not a pair of a list and a map with string keys.
        """
        try:
            if self.name == "noop":
                return (bytes(payload),), {}
            args, kwargs = self.loads(payload)
            if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
                raise TypeError("a request is a pair of a list and a map")
            if kwargs and not all(isinstance(name, str) for name in kwargs):
                raise TypeError("names of keyword arguments are strings")
            return tuple(args), kwargs
        except Exception as error:
            raise self._error("request", "deserialize", (), error) from error

    def dump_response(self, value: Any) -> bytes:
        """Serialize a result or a stream item.

        Raises:
            SerializationError: The value does not fit this serializer.
        """
        try:
            return self.dumps(value)
        except Exception as error:
            raise self._error("response", "serialize", (value,), error) from error

    def load_response(self, payload: Any) -> Any:
        """The reverse of `dump_response`.

        Raises:
            SerializationError: The bytes are not what this serializer writes.
        """
        try:
            return self.loads(payload)
        except Exception as error:
            raise self._error("response", "deserialize", (), error) from error

    def _error(
        self, direction: str, verb: str, values: tuple[Any, ...], cause: Exception
    ) -> SerializationError:
        offenders = [_type_name(v) for v in values if not self._fits(v)]
        what = f" a value of type {offenders[0]}" if offenders else ""
        return SerializationError(
            f"serializer {self.name!r} could not {verb}{what} in the {direction}: "
            f"{type(cause).__name__}: {cause} ({self.hint})",
            serializer=self.name,
            direction=direction,
        )

    def _fits(self, value: Any) -> bool:
        try:
            self.dumps(value)
        except Exception:
            return False
        return True


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _single_bytes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    if len(args) != 1 or kwargs or not isinstance(args[0], bytes):
        raise TypeError("it takes exactly one positional argument, of type bytes")
    return args[0]


class _PlainDataPickler(pickle.Pickler):
    """Pickles built-in data; `reducer_override` sees, and refuses, everything else."""

    def reducer_override(self, obj: Any) -> Any:
        raise _NotPlainData


class _NotPlainData(Exception):
    """Not an error: this value needs cloudpickle."""


_ATOMS = frozenset({str, bytes, int, float, bool, type(None)})


def _is_shallow(value: Any) -> bool:
    """Whether `value` is an atom, or a tuple of atoms and flat containers of atoms, as most
    arguments and results are; `pickle.dumps` alone needs a third of the time for those."""
    if type(value) in _ATOMS:
        return True
    if type(value) is not tuple:
        return False
    for part in value:
        kind = type(part)
        if kind is dict:
            if part and not all(type(v) in _ATOMS for item in part.items() for v in item):
                return False
        elif kind is tuple or kind is list:
            for inner in part:
                if type(inner) not in _ATOMS:
                    return False
        elif kind not in _ATOMS:
            return False
    return True


def _cloudpickle_dumps(value: Any) -> bytes:
    # For built-in data the C pickler writes the same bytes as cloudpickle at a fraction of its
    # cost (docs/decisions/0003-serializers.md).
    if _is_shallow(value):
        return pickle.dumps(value, protocol=PICKLE_PROTOCOL)
    buffer = io.BytesIO()
    try:
        _PlainDataPickler(buffer, PICKLE_PROTOCOL).dump(value)
    except _NotPlainData:
        # Ray's copy of cloudpickle knows reducers that Ray registers, for ObjectRefs among others.
        return cloudpickle.dumps(value, protocol=PICKLE_PROTOCOL)  # type: ignore[no-any-return]
    return buffer.getvalue()


def _pickle_dumps(value: Any) -> bytes:
    return pickle.dumps(value, protocol=PICKLE_PROTOCOL)


def _msgpack_dumps(value: Any) -> bytes:
    packed = msgpack.packb(value, use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def _msgpack_loads(payload: Any) -> Any:
    # Map keys of any type are allowed, as in Ray Serve's own "msgpack".
    return msgpack.unpackb(payload, raw=False, strict_map_key=False)


def _bytes_or_refuse(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("only bytes pass")
    return value


_JSON_HINT = "'msgpack' takes bytes as well, 'cloudpickle' almost any Python object"

_serializers: dict[str, Serializer] = {
    s.name: s
    for s in (
        Serializer("cloudpickle", _cloudpickle_dumps, pickle.loads, "it must be picklable"),
        Serializer("pickle", _pickle_dumps, pickle.loads),
        Serializer("msgpack", _msgpack_dumps, _msgpack_loads),
        Serializer("orjson", orjson.dumps, orjson.loads, _JSON_HINT),
        Serializer("noop", _bytes_or_refuse, bytes, "'cloudpickle' takes more than bytes"),
    )
}
_BUILT_IN = frozenset(_serializers)


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
