"""A server and a caller of ours in a process with a library that observes gRPC.

    python -m tests.behaviour.observed LIBRARY WHEN

WHEN is "before import", "before start" or "after start" of ours. Prints, as JSON, what was answered
and the requests that the library told of.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable

from tests.observers import turn_on


async def observed(library: str, when: str) -> dict[str, object]:
    seen: Callable[[], list[str]] = turn_on(library) if when == "before import" else list
    from tests.behaviour.serving import Answering, Chooser, connect, new_call, send, serve
    from tests.ray.waiting import eventually_async

    if when == "before start":
        seen = turn_on(library)
    server, port, _ = await serve(dispatcher=Answering())
    chooser, connections, answers = Chooser(), [], []
    for text in (b"one", b"two"):
        connections.append(connect(port, chooser))
        connections[-1].connect()
        await eventually_async(lambda: connections[-1].is_open)
        call = new_call(chooser, text)
        send(connections[-1], call)
        await asyncio.wait_for(call.wait_done(), 10)
        answers.append(call.result().decode())
        if when == "after start" and text == b"one":
            seen = turn_on(library)
    answers += await plain_answers(port)
    for connection in connections:
        await connection.aclose()
    await server.stop(1)
    return {"answers": answers, "seen": seen()}


async def plain_answers(port: int) -> list[str]:
    from grpc.aio import _channel

    from serve_grpc._generated.replica_pb2 import CallRequest
    from serve_grpc._generated.replica_pb2_grpc import ReplicaStub
    from serve_grpc.protocol.handshake import sign_call
    from tests.behaviour.serving import REPLICA_ID, SECRET

    def proof(method: str, request: CallRequest) -> tuple[tuple[str, str]]:
        data, nonce = request.SerializeToString(), os.urandom(8).hex()
        path = f"/serve_grpc.v1.Replica/{method}"
        return (("authorization", sign_call(SECRET, path, REPLICA_ID, data, nonce, time.time())),)

    request = CallRequest(payload=b"plain")
    # gRPC's own function: a client that nothing observes.
    async with _channel.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = ReplicaStub(channel)
        replies = [await stub.Call(request, metadata=proof("Call", request), timeout=10)]
        stream = stub.CallStream(request, metadata=proof("CallStream", request), timeout=10)
        replies += [reply async for reply in stream]
    return [reply.payload.decode() for reply in replies]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(observed(*sys.argv[1:]))))
