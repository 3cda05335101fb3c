"""Arguments that are not there yet: responses of other calls, and ObjectRefs.

A response over our transport is passed on as it came, still pickled: the caller needs neither the
time to load the value nor its class. What of it lies in shared memory goes on
from there. Only a serializer that is no pickle makes it load.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.serve import handle as serve_handle

from serve_grpc._serve.references import contain
from serve_grpc._serve.routers import GENERATOR_COMPOSITION_NOT_SUPPORTED_ERROR
from serve_grpc.caller.lending import Borrowed
from serve_grpc.errors import ServeGrpcError
from serve_grpc.foreign import is_interrupt, name_of, text_of
from serve_grpc.payload import Payload, refs_of
from serve_grpc.pickling import reduced
from serve_grpc.response import ByValueResponse
from serve_grpc.serialization import PICKLES, Serializer
from serve_grpc.threads import in_thread

__all__ = ["Pickled", "needs_resolving", "resolve_all"]

_RESOLVED_TYPES = (
    serve_handle.DeploymentResponse,
    serve_handle.DeploymentResponseGenerator,
    ray.ObjectRef,
)


class Pickled:
    """Stands for a value in a pickle, and unpickles to it. Args: `payload`, the value's pickle."""

    def __init__(self, payload: Payload) -> None:
        self._payload = payload

    def __reduce__(self) -> tuple[Any, ...]:
        # The bytes go in as they are, so no pickler sees the refs in them.
        contain(refs_of(self._payload))
        return reduced(self._payload)


def needs_resolving(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether one of them has to be waited for."""
    # Of the arguments themselves, as in `AsyncioRouter._resolve_request_arguments`: a response
    # inside a container is refused by its `__reduce__`, and an ObjectRef there passes as a ref.
    for value in args:
        if isinstance(value, _RESOLVED_TYPES):
            return True
    return bool(kwargs) and any(isinstance(value, _RESOLVED_TYPES) for value in kwargs.values())


async def resolve_all(
    args: tuple[Any, ...], kwargs: dict[str, Any], serializer: Serializer
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to serialize for the arguments, once all of them are there; on any event loop.

    Args:
        args, kwargs: Values of any kind.
        serializer: Of the request.

    Raises:
        Exception: The error of a call, or of a task, that one of them is the result of.
    """
    given = (*args, *kwargs.values())
    waiting = [asyncio.ensure_future(_resolve(value, serializer)) for value in given]
    # Shielded: an argument may be wanted elsewhere when this call is given up.
    values = tuple(await asyncio.shield(asyncio.gather(*waiting)))
    return values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))


async def _resolve(value: Any, serializer: Serializer) -> Any:
    if isinstance(value, serve_handle.DeploymentResponseGenerator):
        raise GENERATOR_COMPOSITION_NOT_SUPPORTED_ERROR
    if isinstance(value, ByValueResponse):
        payload = await value._wait_for_pickle()
        if payload is None or serializer.name not in PICKLES:
            return await in_thread(value.result)  # this loop carries sessions
        refs = refs_of(payload)
        # They are lent on; until they are here, nobody could hold them for the next receiver.
        if isinstance(refs, Borrowed):
            await asyncio.wrap_future(refs.fetched)
        return Pickled(payload)
    if isinstance(value, (serve_handle.DeploymentResponse, ray.ObjectRef)):
        try:
            return await value
        except BaseException as error:
            if isinstance(error, (Exception, asyncio.CancelledError)) or is_interrupt(error):
                raise
            # Of a pickle that is a program; it would end the loop that this task runs on.
            text = f"loading an argument raised {name_of(error)}: {text_of(error)}"
            raise ServeGrpcError(text) from error
    return value
