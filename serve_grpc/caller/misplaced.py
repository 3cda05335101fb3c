"""Streams where none can be: inside of other arguments."""

from __future__ import annotations

from collections.abc import Iterable
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from ray.serve.handle import DeploymentResponseGenerator

from serve_grpc.request_stream import RequestStream

__all__ = ["STREAMS", "check_streams"]

STREAMS = (AsyncGeneratorType, GeneratorType, DeploymentResponseGenerator, RequestStream)
"""What is a stream if it is an argument itself."""


MOST_LOOKED_AT = 1000
"""Values in arguments, before it is known that they do not pass: they may be many."""


def check_streams(
    args: tuple[Any, ...], kwargs: dict[str, Any], most: int | None = MOST_LOOKED_AT
) -> None:
    """Refuse streams in lists, tuples, sets and dicts among the arguments.

    Args:
        args, kwargs: Values of any kind.
        most: How many values to look at; None for all.

    Raises:
        TypeError: There is one; the text names where.
    """
    if not any(type(value) in _CONTAINERS for value in (*args, *kwargs.values())):
        return
    where = [(value, f"argument {i}") for i, value in enumerate(args)]
    where += [(value, f"argument {name!r}") for name, value in kwargs.items()]
    seen: set[int] = set()
    looked_at = 0
    while where:
        container, path = where.pop()
        if id(container) in seen:  # of a value that contains itself
            continue
        seen.add(id(container))
        for key, value in _inside(container):
            looked_at += 1
            if isinstance(value, STREAMS):
                raise TypeError(
                    f"{type(value).__name__} in {path}[{key!r}]: a stream is an argument by "
                    "itself, not inside of another value. Pass it directly"
                )
            if looked_at == most:
                return
            if type(value) in _CONTAINERS:
                where.append((value, f"{path}[{key!r}]"))


_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


def _inside(container: Any) -> Iterable[tuple[Any, Any]]:
    """What is in it, by index or key."""
    # By exact type: the iteration of any other class is its own code.
    if type(container) is dict:
        return container.items()
    return enumerate(container) if type(container) in _CONTAINERS else ()
