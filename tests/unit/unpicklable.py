"""A value that no pickler takes, whatever other libraries have registered (some take locks)."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Unpicklable"]


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot be pickled")
