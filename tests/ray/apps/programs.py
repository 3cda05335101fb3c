"""Values and exceptions whose pickle is a program: what it does, it does in whoever loads it.

In the process that made them they load in peace: a replica tries whether its exceptions can be
loaded before it sends them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from typing import Any

from ray import serve

import serve_grpc

__all__ = ["IS_LOADING", "MAY_LOAD", "Exits", "Programs", "Waits", "plain_app", "programs_app"]

IS_LOADING, MAY_LOAD = threading.Event(), threading.Event()
"""Of this process: set while something is loaded, and by the test, to let that end."""


class Exits(Exception):
    """Whoever loads it elsewhere exits, as a module that is a program does. Also a fine value."""

    def __init__(self, text: str, pid: int = 0) -> None:
        super().__init__(text)
        self.pid = pid or os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_or_exit, (str(self), self.pid)


def _load_or_exit(text: str, pid: int) -> Exits:
    if os.getpid() != pid:
        raise SystemExit("usage: program [options]")
    return Exits(text, pid)


class Waits(Exception):
    """Whoever loads it elsewhere waits, as for an import that takes its time."""

    def __init__(self, text: str, pid: int = 0) -> None:
        super().__init__(text)
        self.pid = pid or os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_slowly, (str(self), self.pid)


def _load_slowly(text: str, pid: int) -> Waits:
    if os.getpid() != pid:
        IS_LOADING.set()
        MAY_LOAD.wait(30)
    return Waits(text, pid)


_KINDS: dict[str, type[Exception]] = {"Exits": Exits, "Waits": Waits}


class Programs:
    """Raises, returns and takes them. Args: `inner`, another one that `through` calls by value."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner and inner.options(_by_reference=False)

    async def pid(self) -> int:
        """Of this replica."""
        return os.getpid()

    async def fail(self, kind: str) -> None:
        """Raise one."""
        raise _KINDS[kind]("the handler's own words")

    async def value(self, kind: str) -> Any:
        """Return one."""
        return _KINDS[kind]("the handler's own words")

    async def items(self, kind: str) -> AsyncIterator[Any]:
        """Yield one between two others."""
        yield 0
        yield _KINDS[kind]("the handler's own words")
        yield 2

    async def take(self, value: Any) -> str:
        """Take one."""
        return str(value)

    async def through(self, method: str, kind: str) -> str:
        """What the inner call of this method ends with here: its error's type and text."""
        argument = _KINDS[kind]("mine") if method == "take" else kind
        try:
            await self.inner.options(method_name=method).remote(argument)
        except Exception as error:
            return f"{[base.__name__ for base in type(error).__mro__]} {error}"
        return "no error"


OPTIONS: Any = {"ray_actor_options": {"num_cpus": 0.01}}


def programs_app() -> Any:
    """One that calls another one."""
    deployment = serve_grpc.deployment(**OPTIONS)(Programs)
    return deployment.bind(deployment.options(name="Inner").bind())


def plain_app() -> Any:
    """One without an endpoint of ours."""
    return serve.deployment(**OPTIONS)(Programs).bind()
