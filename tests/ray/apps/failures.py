"""Exceptions that are easy, hard, or impossible to carry to another process."""

from __future__ import annotations

import threading

__all__ = ["Detailed", "TwoArguments", "Unpicklable", "raise_kind"]


class Detailed(ValueError):
    """Has attributes beside its message."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return Detailed, (self.args[0], self.code)


class TwoArguments(Exception):
    """Pickles, but cannot be built again: its constructor takes more than it hands on."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class Unpicklable(Exception):
    """Holds a lock."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


def raise_kind(kind: str) -> None:
    """Raise the exception of this name."""
    import asyncio

    errors: dict[str, BaseException] = {
        "ValueError": ValueError("a bad value"),
        "Detailed": Detailed("detailed", 42),
        "TwoArguments": TwoArguments("one", "two"),
        "Unpicklable": Unpicklable("holds a lock"),
        "SystemExit": SystemExit(3),
        "KeyboardInterrupt": KeyboardInterrupt("stop"),
        "CancelledError": asyncio.CancelledError("of its own"),
        "StopIteration": StopIteration("odd"),
        "TimeoutError": TimeoutError("the user's own"),
    }
    raise errors[kind]
