"""Responses as arguments: what is passed on as it came, and what has to be loaded first."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Generator

import pytest
from ray.serve import handle as serve_handle

from serve_grpc.arguments import Pickled, needs_resolving, resolve_all
from serve_grpc.caller.outcomes import Raised, Result
from serve_grpc.errors import ServeGrpcError
from serve_grpc.payload import Segments
from serve_grpc.protocol.caller import Envelope
from serve_grpc.response import ByValueResponse
from serve_grpc.serialization import Serializer, get_serializer
from serve_grpc.threads import THREAD_NAME
from tests.unit.sessions_loop import TransportLoop

CLOUDPICKLE = get_serializer("cloudpickle")


class Unloadable:
    """Pickles, and never comes back."""

    def __reduce__(self) -> tuple[object, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise AssertionError("it was loaded")


async def resolved(value: object, serializer: Serializer) -> object:
    """`value`, resolved as the only argument."""
    (resolved,), _ = await resolve_all((value,), {}, serializer)
    return resolved


def response_of(
    transport: TransportLoop, payload: object, serializer: str = "cloudpickle"
) -> ByValueResponse[object]:
    envelope = Envelope("work", serializer, serializer, False, "/", "app")
    loads = get_serializer(serializer).load_response
    call = transport.new_call(envelope, response_loads=loads)
    transport.run(call.end, Result(payload))
    return ByValueResponse(call)


@pytest.mark.parametrize("name", ["cloudpickle", "pickle"])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_pickled_result_is_passed_on_without_loading_it(
    transport: TransportLoop, name: str, in_pieces: bool
) -> None:
    payload = pickle.dumps([1, "two"])
    response = response_of(
        transport, Segments([payload[:3], payload[3:]]) if in_pieces else payload
    )
    value = asyncio.run(resolved(response, get_serializer(name)))
    assert isinstance(value, Pickled)
    args, _ = CLOUDPICKLE.load_request(get_serializer(name).dump_request((value,), {}))
    assert args == ([1, "two"],)


def test_the_caller_needs_nothing_of_what_it_passes_on(transport: TransportLoop) -> None:
    response = response_of(transport, pickle.dumps(Unloadable()))
    value = asyncio.run(resolved(response, CLOUDPICKLE))
    assert CLOUDPICKLE.dump_request((value,), {})


def test_a_result_that_was_changed_by_its_consumer_is_sent_as_it_came(
    transport: TransportLoop,
) -> None:
    response = response_of(transport, pickle.dumps([1]))
    response.result().append(2)
    value = asyncio.run(resolved(response, CLOUDPICKLE))
    args, _ = CLOUDPICKLE.load_request(CLOUDPICKLE.dump_request((value,), {}))
    assert args == ([1],)


@pytest.mark.parametrize(
    ("response_name", "request_name"), [("msgpack", "pickle"), ("pickle", "msgpack")]
)
def test_another_serializer_needs_the_value(
    transport: TransportLoop, response_name: str, request_name: str
) -> None:
    payload = get_serializer(response_name).dump_response([1])
    response = response_of(transport, payload, response_name)
    assert asyncio.run(resolved(response, get_serializer(request_name))) == [1]


class WhereLoaded:
    """Unpickles to the name of the thread that does so."""

    def __reduce__(self) -> tuple[object, ...]:
        return _thread_name, ()


def _thread_name() -> str:
    return threading.current_thread().name


def test_a_value_that_is_needed_is_not_loaded_on_the_loop(transport: TransportLoop) -> None:
    response = response_of(transport, pickle.dumps(WhereLoaded()))
    where = asyncio.run(resolved(response, get_serializer("msgpack")))
    assert isinstance(where, str)
    assert where.startswith(THREAD_NAME)


def test_an_error_of_the_first_call_is_raised(transport: TransportLoop) -> None:
    call = transport.new_call()
    transport.run(call.end, Raised(KeyError("first")))
    with pytest.raises(KeyError, match="first"):
        asyncio.run(resolved(ByValueResponse(call), CLOUDPICKLE))


def test_ordinary_arguments_need_no_resolving(transport: TransportLoop) -> None:
    assert not needs_resolving((1, [2]), {"x": 3})
    assert asyncio.run(resolved([2], CLOUDPICKLE)) == [2]
    response = response_of(transport, pickle.dumps(1))
    assert needs_resolving((response,), {})
    assert needs_resolving((), {"x": response})


class Exits(serve_handle.DeploymentResponse[object]):
    """A response of Serve's own whose value is a program."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __await__(self) -> Generator[None, None, object]:
        yield
        raise self._error


def test_an_argument_that_ends_whoever_loads_it_fails_its_call_alone() -> None:
    async def main() -> None:
        with pytest.raises(ServeGrpcError, match="SystemExit: usage"):
            await resolved(Exits(SystemExit("usage")), CLOUDPICKLE)
        with pytest.raises(asyncio.CancelledError):
            await resolved(Exits(asyncio.CancelledError()), CLOUDPICKLE)

    asyncio.run(main())
