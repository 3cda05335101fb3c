#!/usr/bin/env bash
# On uvloop a timer set for later runs before one set for earlier, if it was set first.
#
# Versions: uvloop 0.23.0, CPython 3.11.7; asyncio's own loop for comparison
# Expected: callbacks of call_at run in the order of their times, as they do on the loop of
# asyncio itself.
# What happens: uvloop rounds each delay to whole milliseconds, and what falls together runs in
# the order it was set: 5.4 ms before 5.1 ms, nearly every time. Code that keeps its deadlines in
# a heap and trusts that the first timer to fire is the first of the heap finds one that is not
# due yet.
# Output seen:
#   5.4 ms ran before 5.1 ms: uvloop 99, asyncio 0, of 100
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check uvloop==0.23.0 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import asyncio
import sys

import uvloop

ROUNDS = 100


async def swapped() -> int:
    loop = asyncio.get_running_loop()
    count = 0
    for _ in range(ROUNDS):
        order: list[str] = []
        now = loop.time()
        loop.call_at(now + 0.0054, order.append, "5.4 ms")
        loop.call_at(now + 0.0051, order.append, "5.1 ms")
        await asyncio.sleep(0.01)
        count += order == ["5.4 ms", "5.1 ms"]
    return count


def run(loop: asyncio.AbstractEventLoop) -> int:
    try:
        return loop.run_until_complete(swapped())
    finally:
        loop.close()


of_uvloop, of_asyncio = run(uvloop.new_event_loop()), run(asyncio.new_event_loop())
print(f"5.4 ms ran before 5.1 ms: uvloop {of_uvloop}, asyncio {of_asyncio}, of {ROUNDS}")
sys.exit(not (of_uvloop > 0 and of_asyncio == 0))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
