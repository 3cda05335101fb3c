"""The values that calls carry, and a cheap check that what came back is one of them.

The check looks at type and length only: comparing 100 MB in full would be measured as latency.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

__all__ = ["Kind", "checker", "make", "size_of"]

Kind = Literal["str", "bytes", "dict", "numpy", "dataframe", "array-dict", "arrays"]

COLUMNS = 10
SMALL_BYTES = 3_000
"""Of each array in a list of them."""


def make(kind: Kind, size: int) -> Any:
    """A value of `size` bytes; a dict is of about that size as JSON."""
    if kind == "str":
        return "x" * size
    if kind == "bytes":
        return b"x" * size
    if kind == "numpy":
        return np.full(size, 7, np.uint8)  # not zeros: those would be one page, mapped many times
    if kind == "array-dict":
        return {"id": 1, "tags": ["a", "b"], "array": np.full(size, 7, np.uint8)}
    if kind == "arrays":
        return [np.full(SMALL_BYTES, 7, np.uint8) for _ in range(size // SMALL_BYTES)]
    if kind == "dataframe":
        import pandas  # takes a while, and only few cases need it

        numbers = np.full((size // 8 // COLUMNS, COLUMNS), 7.0)
        return pandas.DataFrame(numbers, columns=[f"c{number}" for number in range(COLUMNS)])
    record = {"id": 1, "name": "item", "score": 0.5, "tags": ["a", "b"], "parent": None}
    count = max(1, size // len(json.dumps(record)))
    return {str(number): {**record, "id": number} for number in range(count)}


def size_of(value: Any) -> int:
    """Its length: bytes, characters, rows or entries; of a dict with an array, the array's."""
    if isinstance(value, dict) and "array" in value:
        value = value["array"]
    return int(value.nbytes) if isinstance(value, np.ndarray) else len(value)


def checker(expected: Any) -> Callable[[Any], None]:
    """A function that raises ValueError unless its argument looks like `expected`.

    A number is compared as it is; everything else by type and length.
    """
    if isinstance(expected, int):

        def check_number(answer: Any) -> None:
            if answer != expected:
                raise ValueError(f"expected {expected}, the answer is {answer!r}")

        return check_number

    kind, size = type(expected), size_of(expected)

    def check(answer: Any) -> None:
        if type(answer) is not kind:
            raise ValueError(f"expected {kind.__name__}, the answer is {type(answer).__name__}")
        if size_of(answer) != size:
            raise ValueError(f"expected {size} of {kind.__name__}, got {size_of(answer)}")

    return check
