"""Which part of a value a serializer does not take, for the text of an error.

Nothing here is fast: a call has failed. What is pickled in here is thrown away.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["innermost_misfit"]

MAX_LEVELS = 32
"""So deep the culprit is looked for."""

_NO_PARTS = type, types.ModuleType, types.FunctionType


def innermost_misfit(value: Any, fits: Callable[[Any], bool]) -> str:
    """Describe the innermost part of `value` that does not fit: "a value of type set", or "a key".

    Args:
        value: It does not fit.
        fits: Whether the serializer takes a value.
    """
    for _ in range(MAX_LEVELS):
        misfit = next((part for part in _parts(value) if not fits(part)), None)
        if misfit is None:
            break
        value = misfit
    if isinstance(value, dict):
        for key in value:
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
