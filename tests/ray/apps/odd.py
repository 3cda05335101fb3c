"""A deployment that raises what means something to a loop, or is of serve_grpc's own tree."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from ray import serve

import serve_grpc
from serve_grpc.errors import (
    DeadlineExceededError,
    MessageTooLargeError,
    ReplicaDiedError,
    ServeGrpcError,
)

__all__ = ["Bereaved", "Refused", "odd_app"]


class Refused(ServeGrpcError):
    """A user's class in our tree."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


ERRORS: dict[str, Any] = {
    "StopIteration": lambda: StopIteration("odd"),
    "StopAsyncIteration": lambda: StopAsyncIteration("odd"),
    "GeneratorExit": lambda: GeneratorExit("odd"),
    "Refused": lambda: Refused("sold out"),
    "DeadlineExceededError": lambda: DeadlineExceededError("the index is slow"),
    "MessageTooLargeError": lambda: MessageTooLargeError(2, 1, "response"),
}


def throw(kind: str) -> None:
    """Raise the error of this name."""
    raise ERRORS[kind]()


class Odd:
    """One method for each way out of the user's code."""

    async def coroutine(self, kind: str) -> None:
        throw(kind)

    def function(self, kind: str) -> None:
        throw(kind)

    def generator(self, kind: str) -> Iterator[int]:
        yield 1
        throw(kind)

    async def async_generator(self, kind: str) -> AsyncIterator[int]:
        yield 1
        throw(kind)

    def no_generator(self, kind: str) -> Iterator[int]:
        """It would return one."""
        throw(kind)
        return iter(())

    async def no_async_generator(self, kind: str) -> AsyncIterator[int]:
        """It would return one."""
        throw(kind)
        return self.async_generator(kind)


class Bereaved:
    """Raises what a call of its own ended with that had not started, and counts how often."""

    def __init__(self) -> None:
        self._runs = 0

    async def lose(self) -> None:
        self._runs += 1
        raise ReplicaDiedError("of a call of its own", may_have_executed=False)

    async def runs(self) -> int:
        return self._runs


class Caller:
    """Calls it in turn."""

    def __init__(self, odd: Any) -> None:
        self.odd = odd

    async def nested(self, kind: str, by_reference: bool) -> Any:
        return await self.odd.options(_by_reference=by_reference).coroutine.remote(kind)


def odd_app(**env_vars: str) -> serve.Application:
    """Caller and Odd, whose replica has these variables."""
    actor = {"num_cpus": 0.01, "runtime_env": {"env_vars": env_vars}}
    enabled = serve_grpc.deployment(ray_actor_options=actor)
    return enabled(Caller).bind(enabled(Odd).bind())
