#!/usr/bin/env bash
# loop.sock_recv() under asyncio.timeout() drops bytes that it has read, though they came in time.
#
# Versions: uvloop 0.23.0, CPython 3.11.7 (asyncio.timeout needs 3.11)
# Expected: what arrives before the deadline is returned; at worst a busy loop notices the
# deadline first, and the bytes stay in the socket for the next sock_recv().
# What happens: after a pause of the loop, bytes and deadline are noticed in the same turn. The
# bytes are read into the future first, then the task is cancelled all the same, and they are gone:
# TimeoutError, and an empty socket. The stream is out of step from then on. A StreamReader keeps
# them for the next read. uvloop does the same; how often varies a little with both.
# Output seen:
#   asyncio sock_recv:   20 timeouts of 20, bytes lost in 20
#   asyncio readexactly: 20 timeouts of 20, bytes lost in 0
#   uvloop sock_recv:    20 timeouts of 20, bytes lost in 20
#   uvloop readexactly:  20 timeouts of 20, bytes lost in 0
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check uvloop==0.23.0 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import asyncio
import socket
import sys
import time

import uvloop

ROUNDS = 20


async def sock_recv(ours: socket.socket):
    loop = asyncio.get_running_loop()
    return lambda: loop.sock_recv(ours, 1), None


async def readexactly(ours: socket.socket):
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    return lambda: reader.readexactly(1), writer


async def one_round(kind) -> tuple[bool, bool]:
    """Whether it timed out, whether the byte is lost."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    receive, writer = await kind(ours)

    def busy() -> None:
        theirs.send(b"x")  # after 5 ms; the deadline is at 20 ms
        time.sleep(0.03)

    asyncio.get_running_loop().call_later(0.005, busy)
    try:
        async with asyncio.timeout(0.02):
            await receive()
        return False, False
    except TimeoutError:
        pass
    try:
        async with asyncio.timeout(0.02):
            await receive()
        return True, False
    except TimeoutError:
        return True, True
    finally:
        (writer or ours).close()
        theirs.close()


if not hasattr(asyncio, "timeout"):
    sys.exit(2)
lost = {}
for module in asyncio, uvloop:
    for kind in sock_recv, readexactly:
        loop = module.new_event_loop()
        rounds = [loop.run_until_complete(one_round(kind)) for _ in range(ROUNDS)]
        loop.close()
        name = f"{module.__name__} {kind.__name__}"
        lost[name] = sum(gone for _, gone in rounds)
        timeouts = sum(late for late, _ in rounds)
        print(f"{name + ':':20} {timeouts} timeouts of {ROUNDS}, bytes lost in {lost[name]}")
kept = lost["asyncio readexactly"] == lost["uvloop readexactly"] == 0
sys.exit(not (kept and lost["asyncio sock_recv"] > ROUNDS / 2))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
