"""A source whose transport a test plays, and what it has handed over."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Any

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller.item_writer import Entry, ItemWriter, Terms
from serve_grpc.caller.sources import LoopSource
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.serialization import get_serializer

__all__ = ["NAME", "PICKLE", "TERMS", "Noted", "error_of", "on_loop", "values_of", "writer"]

PICKLE = get_serializer("pickle")
TERMS = Terms(100, 10_000, 1000, True)
NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")


class Noted:
    """A generator of either kind, and what was seen of it.

    Attributes:
        steps: Items that it was asked for.
        ends: What was raised where it paused, or "end".
        where: Thread and context variable of each of its steps and of its end.
    """

    def __init__(self, *values: Any) -> None:
        self.values = values
        self.steps = 0
        self.ends: list[str] = []
        self.where: set[tuple[int, str]] = set()
        self.step = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    def _note(self) -> None:
        self.where.add((threading.get_ident(), NAME.get()))

    async def on_loop(self) -> AsyncGenerator[Any, None]:
        try:
            for value in self.values:
                self._note()
                self.steps += 1
                self.step.set()
                await self.may_go_on.wait()
                yield value
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        else:
            self.ends.append("end")
        finally:
            self._note()

    def in_thread(self) -> Generator[Any, None, None]:
        try:
            for value in self.values:
                self._note()
                self.steps += 1
                yield value
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        else:
            self.ends.append("end")
        finally:
            self._note()


def writer() -> ItemWriter:
    return ItemWriter(PICKLE, None, "numbers")


def on_loop(steps: Any) -> LoopSource:
    return LoopSource(steps, writer(), asyncio.get_running_loop())


def values_of(entries: list[Entry]) -> list[Any]:
    """Items, and the kind of whatever else there is."""
    return [
        PICKLE.load_item(e.payload) if e.kind is InputKind.ITEM else e.kind.name for e in entries
    ]


def error_of(entries: list[Entry]) -> Error:
    """The one that is the last entry."""
    assert entries[-1].kind is InputKind.ERROR
    assert entries[-1].error is not None
    assert [e.kind for e in entries].count(InputKind.ERROR) == 1
    return entries[-1].error
