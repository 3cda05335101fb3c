"""A replica that counts what its process decodes, one that turns hostile, and one that calls it."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import serve_grpc
from serve_grpc import serialization
from tests.ray.apps.failures import raise_kind

__all__ = ["Guarded", "Hostile", "Messenger", "Touch"]


class Touch:
    """Unpickling it creates a file, or notes that it was done in the one there is."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


class Guarded:
    """Answers with what it is given."""

    def __init__(self) -> None:
        self._decoded = 0
        known = serialization._serializers
        for name, serializer in known.items():
            known[name] = dataclasses.replace(serializer, loads=self._counted(serializer.loads))

    def _counted(self, loads: Any) -> Any:
        def load(payload: Any) -> Any:
            self._decoded += 1
            return loads(payload)

        return load

    async def __call__(self, value: Any = None) -> Any:
        return value

    async def items(self, number: int) -> AsyncIterator[int]:
        for i in range(number):
            yield i

    async def fail(self, kind: str) -> None:
        raise_kind(kind)

    async def facts(self) -> dict[str, Any]:
        """Asked by reference, so that asking decodes nothing."""
        return {"pid": os.getpid(), "decoded": self._decoded}


class Hostile(Guarded):
    """A member of the cluster whose process was taken over: sends pickles where none are wanted."""

    async def turn(self, path: str) -> None:
        """From now on every result, item and exception is a pickle that touches `path`."""
        from serve_grpc.replica import failures, user_code

        bomb = pickle.dumps(Touch(path))
        tell = failures.message_from_exception

        def tell_with_a_bomb(*args: Any, **kwargs: Any) -> Any:
            message = tell(*args, **kwargs)
            message.pickled = bomb
            return message

        failures.message_from_exception = tell_with_a_bomb
        user_code.UserCode._dump = lambda *_: bomb  # type: ignore[method-assign]


class Messenger:
    """Calls another deployment by value from its own process. Args: `target`, Serve's handle."""

    def __init__(self, target: Any) -> None:
        self._target = serve_grpc.wrap(target).options(_by_reference=False)

    async def ask(self, method: str, args: list[Any], **options: Any) -> dict[str, Any]:
        """How a call ended: its value or items, or the kinds and the text of its error."""
        handle = self._target.options(method_name=method, **options)
        try:
            response = handle.remote(*args)
            if options.get("stream"):
                return {"value": [item async for item in response]}
            return {"value": await response}
        except Exception as error:
            return {"kinds": [kind.__name__ for kind in type(error).__mro__], "text": str(error)}
