"""Members of gRPC's enums by name, for a gRPC ingress' context, which may hold one."""

from __future__ import annotations

import enum

import grpc

__all__ = ["enum_member", "enum_name"]

_KINDS = {kind.__name__: kind for kind in (grpc.StatusCode, grpc.Compression)}


def enum_name(member: object) -> str | None:
    """Its class and name, "StatusCode.NOT_FOUND"; None for anything else."""
    kind = type(member)
    if isinstance(member, enum.Enum) and _KINDS.get(kind.__name__) is kind:
        return f"{kind.__name__}.{member.name}"
    return None


def enum_member(name: str) -> object:
    """The reverse of `enum_name`.

    Raises:
        KeyError: There is no such class or member.
    """
    kind, _, member = name.partition(".")
    return _KINDS[kind][member]
