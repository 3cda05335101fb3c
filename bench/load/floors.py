"""The floors: what grpc.aio itself can do between two processes, without Serve.

"bare unary" is one RPC per call, as Serve's own transport has it; "bare stream" puts everything
that waits into one message of one stream, as serve_grpc does, and nothing else: no routing, no
admission, no deadlines, no accounting. Both echo, and both pickle and unpickle the value on both
sides. Server and load run in a process each; both on uvloop if Serve's replicas do.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import pickle
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import grpc
import uvloop

from bench.load.closed_loop import Recorder, run_in_loop
from bench.load.payloads import checker
from bench.load.window import Counted, Window
from bench.plan.contenders import BARE_UNARY

__all__ = ["Floors"]

SERVICE = "bench.Floor"
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
)

Call = Callable[[Any], Awaitable[Any]]


class Floors:
    """The two processes; made and closed by whoever runs the measurement.

    Args:
        is_uvloop: Which event loop to use.
    """

    def __init__(self, *, is_uvloop: bool) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._is_uvloop = is_uvloop
        self._server = context.Process(target=_serve, args=(theirs, is_uvloop), daemon=True)
        self._server.start()
        theirs.close()
        self._port: int = ours.recv()
        self._client = ProcessPoolExecutor(1, mp_context=context)

    async def measure(self, transport: str, value: Any, window: Window) -> Counted:
        """One window of `transport`, echoing `value`.

        Raises:
            ValueError: An answer was wrong.
        """
        pid = self._server.pid
        assert pid is not None
        job = (transport, self._port, value, window, pid, self._is_uvloop)
        return await asyncio.get_running_loop().run_in_executor(self._client, _load, *job)

    def close(self) -> None:
        """End both processes."""
        self._client.shutdown(cancel_futures=True)
        self._server.terminate()
        self._server.join()


# ------------------------------------------------------------ the process that answers


def _serve(port_to: Connection, is_uvloop: bool) -> None:
    _run(_answer(port_to), is_uvloop)


async def _answer(port_to: Connection) -> None:
    server = grpc.aio.server(options=OPTIONS)
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(_answer_one),
        "Stream": grpc.stream_stream_rpc_method_handler(_answer_batches),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    port_to.send(port)
    await server.wait_for_termination()


async def _echo(value: Any) -> Any:
    return value


async def _answer_one(request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
    return pickle.dumps(await _echo(pickle.loads(request)), pickle.HIGHEST_PROTOCOL)


async def _answer_batches(_requests: Any, context: grpc.aio.ServicerContext) -> None:
    writer = BatchWriter(context.write)
    async with writer:
        while (message := await context.read()) is not grpc.aio.EOF:
            for number, request in pickle.loads(message):
                writer.put(number, await _answer_one(request, context))


class BatchWriter:
    """Writes what was put since its last write as one message: a list of (number, payload)."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._write = write
        self._queue: list[tuple[int, bytes]] = []
        self._filled = asyncio.Event()

    def put(self, number: int, payload: bytes) -> None:
        """Queue a payload."""
        self._queue.append((number, payload))
        self._filled.set()

    async def __aenter__(self) -> BatchWriter:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            batch, self._queue = self._queue, []
            await self._write(pickle.dumps(batch, pickle.HIGHEST_PROTOCOL))


# ------------------------------------------------------------ the process that loads


def _load(
    transport: str, port: int, value: Any, window: Window, server_pid: int, is_uvloop: bool
) -> Counted:
    return _run(_load_over(transport, port, value, window, server_pid), is_uvloop)


async def _load_over(
    transport: str, port: int, value: Any, window: Window, server_pid: int
) -> Counted:
    check = checker(value)

    async def measure(call: Call) -> Counted:
        async def checked(_recorder: Recorder) -> None:
            check(await call(value))

        check(await call(value))  # connects
        return await run_in_loop(checked, window, [server_pid])

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        if transport == BARE_UNARY:
            return await measure(_unary(channel))
        async with StreamClient(channel) as client:
            return await measure(client.call)


def _unary(channel: grpc.aio.Channel) -> Call:
    rpc = channel.unary_unary(f"/{SERVICE}/Unary")

    async def call(value: Any) -> Any:
        return pickle.loads(await rpc(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)))

    return call


class StreamClient:
    """Many calls over one stream."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stream = channel.stream_stream(f"/{SERVICE}/Stream")()
        self._writer = BatchWriter(self._stream.write)
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    async def call(self, value: Any) -> Any:
        """Echo `value`."""
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.put(number, pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        return pickle.loads(await future)

    async def __aenter__(self) -> StreamClient:
        await self._writer.__aenter__()
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._writer.__aexit__()
        self._stream.cancel()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        while (message := await self._stream.read()) is not grpc.aio.EOF:
            for number, reply in pickle.loads(message):
                future = self._waiting.pop(number)
                if not future.done():
                    future.set_result(reply)


def _run(coroutine: Any, is_uvloop: bool) -> Any:
    if is_uvloop:
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    return asyncio.run(coroutine)
