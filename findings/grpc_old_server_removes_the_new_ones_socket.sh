#!/usr/bin/env bash
# Two gRPC servers take the same Unix socket without an error, and the old one, when it stops,
# takes the new one's path away.
#
# Versions: grpcio 1.85.3, CPython 3.11.7
# Expected: the second server's add_insecure_port() raises, as it does for a TCP port with
# so_reuseport off; or, if a handover is meant, the new server keeps the path.
# What happens: the second server removes the file of the first and makes its own. Both report
# that they listen, new connections reach the second. When the first one stops it removes the
# path, whosever file lies there: the second server runs on, healthy and out of reach for ever.
# So a rolling restart on one path works until the old process is gone. A path for each
# process, or a name that is switched with rename(), is safe.
# Output seen:
#   the old server alone: 'old' answers, path exists: True
#   both:                 'new' answers, path exists: True
#   the old one stopped:  UNAVAILABLE, path exists: False
#   TCP, second server:   RuntimeError
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check grpcio==1.85.3 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import asyncio
import os
import pathlib
import sys
import tempfile

os.environ["GRPC_VERBOSITY"] = "NONE"  # it logs the error that is expected of the second on TCP
import grpc


class Named(grpc.GenericRpcHandler):
    def __init__(self, name: str) -> None:
        self.name = name.encode()

    def service(self, details):
        async def answer(request: bytes, context) -> bytes:
            return self.name

        return grpc.unary_unary_rpc_method_handler(answer)


async def serve(name: str, address: str) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Named(name),))
    port = server.add_insecure_port(address)
    await server.start()
    return server, port


async def call(path: pathlib.Path) -> str:
    # With connections of its own: else it may find one that is open to the old server.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{path}", options) as channel:
        try:
            name = await channel.unary_unary("/finding/Name")(b"", timeout=5)
            what = f"{name.decode()!r} answers"
        except grpc.aio.AioRpcError as error:
            what = error.code().name
    return f"{what}, path exists: {path.exists()}"


async def second_on_tcp() -> str:
    server, port = await serve("old", "127.0.0.1:0")
    try:
        await serve("new", f"127.0.0.1:{port}")
        return "no error"
    except RuntimeError as error:
        return type(error).__name__
    finally:
        await server.stop(None)


async def main(folder: str) -> dict[str, str]:
    path = pathlib.Path(folder, "socket")
    found = {}
    old, _ = await serve("old", f"unix:{path}")
    found["the old server alone"] = await call(path)
    new, _ = await serve("new", f"unix:{path}")
    found["both"] = await call(path)
    await old.stop(None)
    del old
    for _ in range(50):  # the file goes a moment after stop() returned
        if not path.exists():
            break
        await asyncio.sleep(0.1)
    found["the old one stopped"] = await call(path)
    await new.stop(None)
    found["TCP, second server"] = await second_on_tcp()
    return found


with tempfile.TemporaryDirectory() as folder:
    found = asyncio.run(main(folder))
for name, what in found.items():
    print(f"{name + ':':21} {what}")
expected = [
    "'old' answers, path exists: True",
    "'new' answers, path exists: True",
    "UNAVAILABLE, path exists: False",
    "RuntimeError",
]
sys.exit(list(found.values()) != expected)
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
