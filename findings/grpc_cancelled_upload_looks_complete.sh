#!/usr/bin/env bash
# An upload that its client cancels looks complete to a handler of grpc.aio: `async for` over the
# requests ends, and the code behind the loop runs.
#
# Versions: grpcio 1.85.3, CPython 3.11.7
# Expected: the loop raises CancelledError, or something else can tell a half-close from a cancel.
# What happens: the loop ends as after the client's last message, and `context.cancelled()` is still
# False. CancelledError is raised at the next await behind it, if there is one.
# Output seen:
#    0 of 20: of these, context.cancelled() was true by then
#   20 of 20: the loop ended as if the upload were complete
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check grpcio==1.85.3 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import asyncio
import collections
import sys

import grpc

ROUNDS, SENT = 20, 3


async def run() -> collections.Counter:
    """What a handler of an upload did after the client had cancelled, counted over the rounds."""
    seen: collections.Counter = collections.Counter()
    over = asyncio.Event()
    arrived = asyncio.Event()

    async def upload(requests, context):
        received = 0
        try:
            async for _ in requests:
                received += 1
                if received == SENT:
                    arrived.set()
            seen["the loop ended as if the upload were complete"] += 1
            seen["of these, context.cancelled() was true by then"] += context.cancelled()
            return b"stored"
        except asyncio.CancelledError:
            seen["CancelledError was raised in the loop"] += 1
            raise
        finally:
            over.set()

    server = grpc.aio.server()
    handler = grpc.stream_unary_rpc_method_handler(upload)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Service", {"Upload": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(ROUNDS):
            over.clear()
            arrived.clear()
            call = channel.stream_unary("/Service/Upload")()
            for _ in range(SENT):
                await call.write(b"part")
            await arrived.wait()
            call.cancel()
            await asyncio.wait_for(over.wait(), 10)
    await server.stop(None)
    return seen


seen = asyncio.run(run())
for what, count in sorted(seen.items()):
    print(f"{count:2d} of {ROUNDS}: {what}")
sys.exit(not seen["the loop ended as if the upload were complete"])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
