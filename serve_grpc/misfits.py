"""Which part of a value a serializer does not take, for the text of an error.

Nothing here is fast: a call has failed. What is pickled in here is thrown away.
"""

from __future__ import annotations

import itertools
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["innermost_misfit"]

MAX_LEVELS = 32
"""So deep the culprit is looked for."""
LOOK_S = 0.2
"""And so long: a value may have millions of parts, and an event loop may wait for the text."""

# What these hold is code, none of it a part of the value, and a module leads everywhere.
_NO_PARTS = type, types.ModuleType, types.FunctionType


def innermost_misfit(value: Any, fits: Callable[[Any], bool]) -> str:
    """Describe the innermost part of `value` that does not fit: "a value of type set", or "a key".

    Args:
        value: It does not fit.
        fits: Whether the serializer takes a value.

    Raises:
        BaseException: What the value's own code raises when it is asked what it consists of.
    """
    until_s = time.monotonic() + LOOK_S

    def in_time(_: object) -> bool:
        return time.monotonic() < until_s

    # Level by level, into the first part that does not fit: with it left out the rest may well do.
    for _ in range(MAX_LEVELS):
        parts = itertools.takewhile(in_time, _parts(value))
        misfit = next((part for part in parts if not fits(part)), None)
        if misfit is None:
            break
        value = misfit
    if isinstance(value, dict):
        for key in itertools.takewhile(in_time, value):
            if not fits({key: None}):
                return f"a key of type {_type_name(key)}"
    return f"a value of type {_type_name(value)}"


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif not isinstance(value, _NO_PARTS):
        yield from getattr(value, "__dict__", {}).values()


def _type_name(value: Any) -> str:
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
