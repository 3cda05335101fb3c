#!/usr/bin/env bash
# A Unix socket whose queue is full takes no more connections, and asyncio says that it did.
#
# Versions: uvloop 0.23.0, CPython 3.11.7
# Expected: open_unix_connection() and loop.sock_connect() return when there is a connection. If
# the listener's queue is full, they wait, as they do with TCP, or raise BlockingIOError.
# What happens: Linux refuses such a connect() with EAGAIN, which asyncio takes for "under way": it
# waits until the socket is writable, which one without a peer always is. The caller has a reader
# and a writer of no connection; the first read or write fails with an error that says nothing of
# a queue. uvloop's open_unix_connection() raises BlockingIOError, its sock_connect() is as wrong
# as asyncio's. A burst of callers is enough, or a listener that is busy for a moment.
# Output seen:
#   asyncio open_unix_connection: {'connected': 2, 'connected, without a peer': 4}
#   asyncio sock_connect:         {'connected': 2, 'connected, without a peer': 4}
#   uvloop open_unix_connection:  {'connected': 2, 'BlockingIOError': 4}
#   uvloop sock_connect:          {'connected': 2, 'connected, without a peer': 4}
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check uvloop==0.23.0 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import asyncio
import collections
import pathlib
import socket
import sys
import tempfile

import uvloop

CALLERS = 6


async def open_unix_connection(path: str) -> socket.socket:
    _, writer = await asyncio.open_unix_connection(path)
    opened.append(writer)
    return writer.get_extra_info("socket")


async def sock_connect(path: str) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX)
    caller.setblocking(False)
    opened.append(caller)
    await asyncio.get_running_loop().sock_connect(caller, path)
    return caller


async def burst(connect, path: str) -> dict[str, int]:
    found = collections.Counter()
    for _ in range(CALLERS):
        try:
            (await connect(path)).getpeername()
            found["connected"] += 1
        except BlockingIOError as error:
            found[type(error).__name__] += 1
        except OSError:
            found["connected, without a peer"] += 1
    for each in opened:
        each.close()
    return dict(found)


opened: list = []
results = []
for module in asyncio, uvloop:
    for connect in open_unix_connection, sock_connect:
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            path = str(pathlib.Path(folder, "socket"))
            listener.bind(path)
            listener.listen(1)  # Linux holds one more than that
            opened.clear()
            loop = module.new_event_loop()
            results.append(loop.run_until_complete(burst(connect, path)))
            loop.close()
        print(f"{module.__name__ + ' ' + connect.__name__ + ':':29} {results[-1]}")
wrong = {"connected": 2, "connected, without a peer": 4}
sys.exit(results != [wrong, wrong, {"connected": 2, "BlockingIOError": 4}, wrong])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
