#!/usr/bin/env bash
# The longer the text of a gRPC error, the likelier it arrives as another error: the status code
# of one and the same failure is a matter of chance.
#
# Versions: grpcio 1.85.3, CPython 3.11.7
# Expected: an RPC that its handler ends with NOT_FOUND ends with NOT_FOUND, or, if its text were
# too long to send, always with the same other code.
# What happens: between 8 and 16 KiB of trailing metadata the client draws lots: at 12,000
# characters about half of the calls end with RESOURCE_EXHAUSTED, which clients take for overload
# and repeat. The text that would have told them is gone.
# Output seen:
#     4000 characters: {'NOT_FOUND': 60}
#    12000 characters: {'NOT_FOUND': 30, 'RESOURCE_EXHAUSTED': 30}
#    20000 characters: {'RESOURCE_EXHAUSTED': 60}
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
from collections import Counter

import grpc

CALLS = 60


async def fail(request: bytes, context: grpc.aio.ServicerContext) -> None:
    await context.abort(grpc.StatusCode.NOT_FOUND, "x" * int(request))


async def codes(channel: grpc.aio.Channel, length: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    for _ in range(CALLS):
        try:
            await channel.unary_unary("/Service/Call")(str(length).encode())
        except grpc.aio.AioRpcError as error:
            found[error.code().name] += 1
    return dict(sorted(found.items()))


async def main() -> bool:
    server = grpc.aio.server()
    methods = {"Call": grpc.unary_unary_rpc_method_handler(fail)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Service", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        found = {length: await codes(channel, length) for length in (4_000, 12_000, 20_000)}
    await server.stop(None)
    for length, seen in found.items():
        print(f"{length:6} characters: {seen}")
    lots = set(found[12_000]) == {"NOT_FOUND", "RESOURCE_EXHAUSTED"}
    return lots and set(found[4_000]) == {"NOT_FOUND"}


sys.exit(not asyncio.run(main()))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
