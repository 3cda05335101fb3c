#!/usr/bin/env bash
# A `context.read()` of grpc.aio that is given up makes every later read an end of stream, and the
# call ends with OK.
#
# Versions: grpcio 1.85.3, CPython 3.11.7
# Expected: `asyncio.wait_for(context.read(), ...)` that times out gives up one wait; the messages that
# the client sends after that are read by the next reads, or these raise.
# What happens: they give EOF, though the client is there and sends. The handler goes on as if the
# stream were complete, and its client gets OK for messages that nobody read.
# Output seen:
#   read: nothing yet, end of stream, end of stream, end of stream; the call ended with OK
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check grpcio==1.85.3 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import asyncio
import sys

import grpc

PAUSE_S = 1.0


async def run() -> tuple[list[str], str]:
    """What a handler reads that lost patience once, and how its client's call ends."""
    read = []

    async def upload(_, context):
        try:
            await asyncio.wait_for(context.read(), PAUSE_S / 4)
        except asyncio.TimeoutError:
            read.append("nothing yet")
        for _ in range(3):
            message = await context.read()
            read.append("end of stream" if message is grpc.aio.EOF else message.decode())
        return b""

    server = grpc.aio.server()
    handler = grpc.stream_unary_rpc_method_handler(upload)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Service", {"Upload": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_unary("/Service/Upload")()

        async def speak() -> None:
            await asyncio.sleep(PAUSE_S)
            for part in (b"first", b"second"):
                await call.write(part)
            await call.done_writing()

        speaking = asyncio.ensure_future(speak())
        code = await call.code()
        await asyncio.gather(speaking, return_exceptions=True)
    await server.stop(None)
    return read, code.name


read, code = asyncio.run(run())
print(f"read: {', '.join(read)}; the call ended with {code}")
sys.exit(not (read[1:] == ["end of stream"] * 3 and code == "OK"))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
