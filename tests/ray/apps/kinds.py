"""One deployment of each kind of code that Ray Serve takes."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import FastAPI
from ray import serve

import serve_grpc

__all__ = ["Api", "diamond", "enabled_diamond", "healthy", "in_loop_app", "kinds_app"]

OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 3,
    "max_ongoing_requests": 20,
}


def has_running_loop() -> bool:
    """Whether this code runs in an event loop's thread."""
    return asyncio._get_running_loop() is not None


@serve_grpc.deployment(**OPTIONS)
async def async_function(value: Any) -> Any:
    return ["async", value]


@serve_grpc.deployment(**OPTIONS)
def sync_function(value: Any, scale: int = 2) -> Any:
    return ["sync", value * scale, has_running_loop()]


@serve_grpc.deployment(**OPTIONS)
async def async_generator(number: int) -> AsyncIterator[int]:
    for i in range(number):
        yield i


class Sync:
    """`def` methods."""

    def __call__(self, value: Any) -> Any:
        return [value, has_running_loop(), threading.current_thread().name]

    def items(self, number: int) -> Iterator[Any]:
        for i in range(number):
            yield [i, has_running_loop()]

    def other(self, *, named: int) -> int:
        return named

    @staticmethod
    def static(value: int) -> int:
        return value + 1

    @classmethod
    def of_class(cls, value: int) -> str:
        return f"{cls.__name__} {value}"


@serve_grpc.deployment(**OPTIONS)
class AsyncInit:
    """Its constructor awaits, and it has metadata of its own."""

    async def __init__(self, value: int) -> None:
        await asyncio.sleep(0)
        self.value = value

    async def __call__(self) -> int:
        return self.value

    def record_replica_metadata(self) -> dict[str, Any]:
        return {"mine": self.value}


class Sealer(type):
    """Of classes that cannot be extended."""

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> Any:
        if any(isinstance(each, Sealer) for each in bases):
            raise TypeError(f"{name} extends a sealed class")
        return super().__new__(cls, name, bases, space)


@serve_grpc.deployment(**OPTIONS)
class Sealed(metaclass=Sealer):
    """Looks at itself."""

    __slots__ = ()

    async def __call__(self) -> Any:
        mine = [name for name in dir(self) if not name.startswith("__")]
        return [type(self).__mro__ == (type(self), object), mine]

    async def other(self) -> None:
        """Another method."""


def timed(function: Any) -> Any:
    """A decorator as users write them."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


@serve_grpc.deployment(**OPTIONS)
@timed
async def healthy() -> str:
    return "ok"


@serve_grpc.deployment(max_ongoing_requests=20)
@serve.deployment(**{**OPTIONS, "max_ongoing_requests": 3})
class Twice:
    """Under both decorators."""

    async def __call__(self) -> int:
        return 2


@serve_grpc.deployment(**OPTIONS)
class Root:
    """Gets handles in every shape."""

    def __init__(
        self, plain: Any, listed: list[Any], mapped: dict[str, Any], *_: Any, deep: Any
    ) -> None:
        self.handles = {
            "plain": plain,
            "listed": listed[0],
            "mapped": mapped["inner"],
            "deep": deep["a"][0]["b"],
        }

    async def kinds(self) -> dict[str, list[str]]:
        return {
            name: [type(handle).__module__, handle.deployment_name]
            for name, handle in self.handles.items()
        }

    async def call(self, name: str, by_reference: bool, *args: Any) -> Any:
        return await self.handles[name].options(_by_reference=by_reference).remote(*args)


def kinds_app() -> serve.Application:
    """Everything above behind one root."""
    return Root.bind(
        async_function.bind(),
        [sync_function.bind(), 1],
        {"inner": AsyncInit.bind(7), "other": async_generator.bind()},
        Sealed.bind(),
        Twice.bind(),
        deep={"a": ({"b": serve_grpc.deployment(**OPTIONS)(Sync).bind()},)},
    )


def in_loop_app() -> serve.Application:
    """`def` methods that run on the event loop."""
    options = {
        **OPTIONS,
        "ray_actor_options": {
            "num_cpus": 0.01,
            "runtime_env": {"env_vars": {"RAY_SERVE_RUN_SYNC_IN_THREADPOOL": "0"}},
        },
    }
    return serve_grpc.deployment(**options)(Sync).bind()


api = FastAPI()


@serve_grpc.deployment(**OPTIONS)
@serve.ingress(api)
class Api:
    """A FastAPI application with a method for handles too."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    @api.get("/greet/{name}")
    async def greet(self, name: str) -> dict[str, str]:
        return {"text": f"{self.greeting} {name}"}

    async def direct(self, name: str) -> str:
        return f"{self.greeting} {name} directly"


# ------------------------------------------------------------ an app that knows nothing of us


@serve.deployment(**OPTIONS)
class Bottom:
    async def __call__(self, value: int) -> int:
        return value + 1


@serve.deployment(**OPTIONS)
class Side:
    def __init__(self, bottom: Any, factor: int) -> None:
        self.bottom, self.factor = bottom, factor

    async def __call__(self, value: int) -> int:
        bottom = self.bottom
        if isinstance(bottom, serve_grpc.DeploymentHandle):
            bottom = bottom.options(_by_reference=False)
        response = bottom.remote(value)
        assert response.by_reference is not isinstance(bottom, serve_grpc.DeploymentHandle)
        return self.factor * await response


@serve.deployment(**OPTIONS)
class Top:
    def __init__(self, sides: list[Any]) -> None:
        self.sides = sides

    async def __call__(self, value: int) -> int:
        return sum(await asyncio.gather(*(side.remote(value) for side in self.sides)))

    async def handle_kinds(self) -> list[str]:
        return [type(side).__module__ for side in self.sides]


bottom = Bottom.bind()
diamond = Top.bind([Side.options(name="Left").bind(bottom, 10), Side.bind(bottom, 1)])
enabled_diamond = serve_grpc.enable(diamond)
