"""Libraries that observe gRPC in the same process: sessions work, plain calls are observed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.behaviour.observed import plain_answers
from tests.behaviour.serving import Answering, Chooser, connect, new_call, send, serve
from tests.observers import LIBRARIES
from tests.ray.waiting import eventually_async

ROOT = Path(__file__).resolve().parents[2]
CALL, STREAM = "/serve_grpc.v1.Replica/Call", "/serve_grpc.v1.Replica/CallStream"
OBSERVED = {  # by what they do with a server's calls of either kind
    "sentry": [CALL],
    "opentelemetry": [CALL, STREAM],
    "ddtrace": [CALL, STREAM],
    "elastic": [CALL],
}


@pytest.mark.parametrize(
    ("library", "when"),
    [
        *((library, "before import") for library in LIBRARIES),
        ("sentry", "before start"),
        ("opentelemetry", "after start"),
    ],
)
def test_sessions_are_not_observed_and_plain_calls_are(library: str, when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.behaviour.observed", library, when],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {
        "answers": ["one", "two", "plain", "plain", "plain", "plain"],
        "seen": [] if when == "after start" else OBSERVED[library],
    }


# ------------------------------------------------------------ interceptors of other shapes


class Writing(grpc.aio.ServerInterceptor):
    """Writes a stream's replies by itself; takes unary calls through a `def`."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)

        async def stream(request: Any, context: Any) -> None:
            async for reply in handler.unary_stream(request, context):
                await context.write(reply)

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: handler.unary_unary(request, context),
            handler.request_deserializer,
            handler.response_serializer,
        )


class Iterating(grpc.aio.ServerInterceptor):
    """Makes of a stream's generator an iterator that cannot be closed."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if not handler.response_streaming:
            return handler

        class Replies:
            def __init__(self, request: Any, context: Any) -> None:
                self.replies = handler.unary_stream(request, context)

            def __aiter__(self) -> Any:
                return self

            async def __anext__(self) -> Any:
                return await anext(self.replies)

        return grpc.unary_stream_rpc_method_handler(
            Replies, handler.request_deserializer, handler.response_serializer
        )


class Denying(grpc.aio.ServerInterceptor):
    """Refuses every call, with a handler of one kind."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        async def deny(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not today")

        return grpc.unary_unary_rpc_method_handler(deny, bytes)


async def answers(added: grpc.aio.ServerInterceptor, monkeypatch: Any) -> tuple[bytes, Any]:
    """Of a call in a session, and of the plain door."""
    original = grpc.aio.server

    def server(*args: Any, interceptors: Any = (), **kwargs: Any) -> Any:
        return original(*args, interceptors=(added, *interceptors), **kwargs)

    monkeypatch.setattr(grpc.aio, "server", server)
    running, port, _ = await serve(dispatcher=Answering())
    chooser = Chooser()
    connection = connect(port, chooser)
    connection.connect()
    await eventually_async(lambda: connection.is_open)
    call = new_call(chooser, b"one")
    send(connection, call)
    await call.wait_done()
    try:
        plain: Any = await plain_answers(port)
    except grpc.aio.AioRpcError as error:
        plain = error.details()
    await connection.aclose()
    await running.stop(1)
    return call.result(), plain


@pytest.mark.parametrize(
    ("added", "plain"),
    [(Writing(), ["plain"] * 4), (Iterating(), ["plain"] * 4), (Denying(), "not today")],
    ids=lambda value: type(value).__name__,
)
def test_interceptors_may_answer_as_grpc_lets_them(
    added: Any, plain: Any, monkeypatch: Any
) -> None:
    assert asyncio.run(answers(added, monkeypatch)) == (b"one", plain)
