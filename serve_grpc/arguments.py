"""Arguments that are not there yet: responses of other calls, ObjectRefs, and streams.

A response over our transport is passed on as it came, still pickled: the caller needs neither the
time to load the value nor its class. What of it lies in shared memory goes on
from there. Only a serializer that is no pickle makes it load. The items of a stream follow the call
(`caller/inputs.py`); until it is sent, something stands for it among the arguments.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from types import AsyncGeneratorType, GeneratorType
from typing import Any

import ray
from ray.serve import handle as serve_handle

from serve_grpc._serve.references import contain
from serve_grpc.caller.inputs import InputArgument, Inputs
from serve_grpc.caller.item_writer import ItemWriter
from serve_grpc.caller.lending import Borrowed
from serve_grpc.caller.misplaced import STREAMS, check_streams
from serve_grpc.caller.refusal import TAKES_NO_INPUTS
from serve_grpc.caller.relays import InboxItems, Relay, ResponseItems
from serve_grpc.caller.router import Router
from serve_grpc.caller.sources import LoopSource, ReferencedItems, Source, ThreadSource
from serve_grpc.errors import ServeGrpcError
from serve_grpc.foreign import is_interrupt, name_of, text_of
from serve_grpc.payload import Payload, refs_of
from serve_grpc.pickling import reduced
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.wire import MAX_INPUTS
from serve_grpc.request_stream import RequestStream
from serve_grpc.response import ByValueResponse, ByValueResponseGenerator
from serve_grpc.serialization import PICKLES, Serializer
from serve_grpc.threads import in_thread

__all__ = [
    "OPT_IN",
    "Pickled",
    "needs_resolving",
    "refuse_streams",
    "resolve_all",
    "with_inputs",
]

BY_REFERENCE = "calls by value take them; use `handle.options(_by_reference=False)`"
OPT_IN = "; `serve_grpc.deployment` or `serve_grpc.enable` gives it one that takes them"

_PLAIN = frozenset({str, bytes, int, float, bool, type(None), list, tuple, dict})
_STREAMS = (*STREAMS, InputArgument)
_RESOLVED_TYPES = (serve_handle.DeploymentResponse, ray.ObjectRef, *STREAMS)


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
        # Most are plain data, which the set tells in less time than `isinstance` needs for a class.
        if type(value) not in _PLAIN and isinstance(value, _RESOLVED_TYPES):
            return True
    return bool(kwargs) and any(isinstance(value, _RESOLVED_TYPES) for value in kwargs.values())


def refuse_streams(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    why: str = BY_REFERENCE,
    kind: Callable[[str], Exception] = TypeError,
) -> None:
    """Refuse a call with streams among its arguments.

    Args:
        args, kwargs: Values of any kind.
        why: There can be none, and what to do; by default because the call is by reference.
        kind: Of the error.

    Raises:
        Exception: `kind`, if there is one.
    """
    if any(isinstance(value, _STREAMS) for value in (*args, *kwargs.values())):
        raise kind(f"a stream cannot be an argument of this call: {why}")


def with_inputs(
    router: Router, args: tuple[Any, ...], kwargs: dict[str, Any], serializer: Serializer
) -> tuple[tuple[Any, ...], dict[str, Any], Inputs | None]:
    """The arguments with an `InputArgument` in the place of each stream, and all of these.

    In the thread of `remote()`, whose loop and context the streams get.

    Args:
        router: Of the deployment.
        args, kwargs: Values of any kind.
        serializer: Of the request.

    Raises:
        TypeError: A stream cannot be an argument in this way; the text says what can.
        ServeGrpcError: The deployment takes none.
        RuntimeError: One of them, of the request that this code runs for, is consumed already.
    """
    feed = router.feed
    if feed.fallback_reason is not None:
        why = f"the deployment {feed.fallback_reason}{OPT_IN}"
        refuse_streams(args, kwargs, why, ServeGrpcError)
    if feed.is_ready and not feed.takes_inputs:
        refuse_streams(args, kwargs, TAKES_NO_INPUTS, ServeGrpcError)
    check_streams(args, kwargs)
    found = _streams_among(args, kwargs)
    if not found:
        return args, kwargs, None
    loop = asyncio._get_running_loop()
    sources = []
    _claim([stream for _, _, stream in found])
    for _, _, stream in found:
        name = getattr(stream, "__qualname__", type(stream).__name__)
        sources.append(_source_of(stream, ItemWriter(serializer, router.memory, name), loop))
    places = tuple(InputPlace(position, name) for position, name, _ in found)
    inputs = Inputs(places, sources, router.mailbox)
    positional, named = list(args), dict(kwargs)
    for number, (position, name) in enumerate(places):
        where: Any = named if name else positional
        where[name or position] = InputArgument(inputs, number)
    return tuple(positional), named, inputs


def _streams_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int, str, Any]]:
    """Position, name and value of each."""
    found = [(i, "", v) for i, v in enumerate(args) if isinstance(v, STREAMS)]
    found += [(0, name, v) for name, v in kwargs.items() if isinstance(v, STREAMS)]
    if len(found) > MAX_INPUTS:
        raise TypeError(f"{len(found)} streams are arguments of one call; {MAX_INPUTS} can be")
    if len({id(stream) for _, _, stream in found}) < len(found):
        raise TypeError("one stream is two arguments of a call; it can be read once")
    has_async = any(isinstance(stream, AsyncGeneratorType) for _, _, stream in found)
    if has_async and asyncio._get_running_loop() is None:
        raise TypeError(
            "an async generator is an argument of a call outside of an event loop, which it needs "
            "to run on. Make the call in a coroutine, or pass a plain generator"
        )
    return found


def _claim(streams: list[Any]) -> None:
    """Note that these belong to a call now, for a second one would get what the first leaves over.

    Raises:
        TypeError: One of them belongs to a call already, or has ended; none is claimed.
    """
    with _claiming:
        for stream in streams:
            if stream in _claimed:
                raise TypeError(
                    f"this {type(stream).__name__} is an argument of an earlier call, which reads "
                    "it or has closed it, also if it was never sent: make a new one for each call"
                )
            if _has_ended(stream):
                raise TypeError(
                    f"this {type(stream).__name__} has ended and has no items left: make a new one"
                )
        _claimed.update(streams)


def _has_ended(stream: Any) -> bool:
    if isinstance(stream, GeneratorType):
        return stream.gi_frame is None
    return isinstance(stream, AsyncGeneratorType) and stream.ag_frame is None


_claimed: weakref.WeakSet[Any] = weakref.WeakSet()
_claiming = threading.Lock()


def _source_of(stream: Any, writer: ItemWriter, loop: asyncio.AbstractEventLoop | None) -> Source:
    if isinstance(stream, RequestStream):
        return Relay(InboxItems(stream._hand_on()), writer)
    if isinstance(stream, ByValueResponseGenerator):
        return Relay(ResponseItems(stream._hand_on(), stream.close), writer)
    if isinstance(stream, GeneratorType):
        return ThreadSource(stream, writer)
    items = stream if isinstance(stream, AsyncGeneratorType) else ReferencedItems(stream)
    if loop is None:
        assert isinstance(items, ReferencedItems)
        return ThreadSource(items, writer)
    return LoopSource(items, writer, loop)


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
