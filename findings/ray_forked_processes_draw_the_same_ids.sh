#!/usr/bin/env bash
# Processes that are forked from one that has imported Ray Serve draw the same task ids.
#
# Versions: ray[serve] 2.60.0, CPython 3.11.7
# Expected: a child draws ids of its own, as Python's random and uuid do: both are seeded anew at
# a fork, and an id that Ray draws is to be one of a kind in a cluster.
# What happens: the generator is in Ray's C++ part, one for each thread, and nobody seeds it anew.
# Importing Ray Serve sets it going. From then on each child goes on from the same state, and so
# does the first new thread of each. Importing Ray alone leaves the ids different.
# Output seen:
#   after import ray.serve: 1 task id of 4 children, 1 of a thread in each; random: 4 numbers
#   after import ray: 4 task ids of 4 children, 4 of a thread in each; random: 4 numbers
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'ray[serve]==2.60.0' || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import importlib
import json
import os
import random
import subprocess
import sys
import threading

CHILDREN = 4


def seen_by_children(module: str) -> tuple[int, int, int]:
    """How many different ids the children drew, first, in a thread; and numbers of `random`."""
    importlib.import_module(module)
    import ray

    def draw() -> str:
        return ray.TaskID.for_fake_task(ray.JobID.from_int(1)).hex()

    found = []
    for _ in range(CHILDREN):
        reader, writer = os.pipe()
        if os.fork() == 0:
            drawn = [draw()]
            thread = threading.Thread(target=lambda: drawn.append(draw()))
            thread.start()
            thread.join()
            os.write(writer, json.dumps([*drawn, random.random()]).encode())
            os._exit(0)
        os.wait()
        found.append(json.loads(os.read(reader, 10_000)))
    first, in_thread, numbers = (len(set(each)) for each in zip(*found))
    return first, in_thread, numbers


if len(sys.argv) > 1:
    print(json.dumps(seen_by_children(sys.argv[1])))
    sys.exit()
same = []
for module in ("ray.serve", "ray"):
    run = subprocess.run([sys.executable, __file__, module], capture_output=True, text=True)
    first, in_thread, numbers = json.loads(run.stdout.splitlines()[-1])
    print(
        f"after import {module}: {first} task id{'s' * (first > 1)} of {CHILDREN} children, "
        f"{in_thread} of a thread in each; random: {numbers} numbers"
    )
    same.append((first, in_thread, numbers))
sys.exit(same != [(1, 1, CHILDREN), (CHILDREN, CHILDREN, CHILDREN)])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
