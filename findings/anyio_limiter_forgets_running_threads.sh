#!/usr/bin/env bash
# anyio's thread limiter counts a thread as gone as soon as asyncio cancels the task that waits
# for it.
#
# Versions: anyio 4.16.0, CPython 3.11.7
# Expected: anyio.to_thread.run_sync(..., abandon_on_cancel=False), the default, does not return
# before its thread has, and a CapacityLimiter(1) lets one thread run at a time.
# What happens: the shield is one of anyio's cancel scopes, and Task.cancel() of asyncio - which
# wait_for, TaskGroup and every asyncio server use - goes through it. The wait ends, the token is
# given back, the thread runs on: ten threads under a limiter of one. Starlette, FastAPI and Ray
# Serve run `def` handlers this way.
# Output seen:
#   threads at once: 10, of 1 allowed; tokens borrowed while they ran: 0
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check anyio==4.16.0 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import asyncio
import sys
import threading
import time

import anyio.to_thread

running = most = 0
lock = threading.Lock()


def work() -> None:
    global running, most
    with lock:
        running += 1
        most = max(most, running)
    time.sleep(1)
    with lock:
        running -= 1


async def main() -> int:
    limiter = anyio.CapacityLimiter(1)
    for _ in range(10):
        try:
            await asyncio.wait_for(anyio.to_thread.run_sync(work, limiter=limiter), timeout=0.02)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            pass
    return limiter.borrowed_tokens


borrowed = asyncio.run(main())
print(f"threads at once: {most}, of 1 allowed; tokens borrowed while they ran: {borrowed}")
sys.exit(not (most > 1 and borrowed == 0))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
