"""Serve's context of a gRPC request that came in through an ingress, as bytes.

It holds plain data: metadata, the peer, a status code. So it travels as msgpack of its fields, not
as a pickle: a frame is read whatever its sender wants with it.
"""

from __future__ import annotations

from typing import Any

import msgpack
from ray.serve.grpc_util import RayServegRPCContext

from serve_grpc.carriers.grpc.enums import enum_member, enum_name

__all__ = ["ingress_context_from_bytes", "ingress_context_to_bytes"]

_ENUM, _TUPLE = 1, 2
"""Extension types of msgpack, as replica.proto describes them: an enum's member by its name, and a
tuple, for which msgpack has no type."""


def ingress_context_to_bytes(context: Any) -> bytes:
    """The fields of Serve's context, in msgpack.

    Raises:
        TypeError: One holds something else than plain data.
    """
    data: bytes = _pack(vars(context))
    return data


def ingress_context_from_bytes(data: bytes) -> Any:
    """A context of Serve's, from what `ingress_context_to_bytes` made.

    Raises:
        Exception: What msgpack raises; or the fields cannot be those of a context.
    """
    fields = _unpack(data)
    if not isinstance(fields, dict) or not all(_is_field(name) for name in fields):
        raise ValueError("these are no fields of a gRPC context")
    # Its constructor takes gRPC's own context, of a call that is being served.
    context = RayServegRPCContext.__new__(RayServegRPCContext)
    context.__dict__.update(fields)
    return context


def _is_field(name: Any) -> bool:
    # Its methods have public names, which a field must not hide.
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def _pack(value: Any) -> Any:
    # Strict: a tuple, and an enum that is a number too, come to `_pack_other`.
    return msgpack.packb(value, use_bin_type=True, strict_types=True, default=_pack_other)


def _pack_other(value: Any) -> Any:
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, _pack(list(value)))
    name = enum_name(value)
    if name is None:
        raise TypeError(f"a gRPC context with a {type(value).__name__} cannot be sent")
    return msgpack.ExtType(_ENUM, name.encode())


def _unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, raw=False, ext_hook=_unpack_other)


def _unpack_other(code: int, data: bytes) -> Any:
    if code == _TUPLE:
        return tuple(_unpack(data))
    if code == _ENUM:
        return enum_member(data.decode())
    raise ValueError(f"a value of unknown type {code}")
