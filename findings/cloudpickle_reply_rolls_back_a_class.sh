#!/usr/bin/env bash
# Loading an object that cloudpickle wrote sets its class back, if that is a class of __main__: the
# worker's counters, and the sender's own class when its object returns.
#
# Versions: cloudpickle 3.1.3, CPython 3.11.7
# Expected: a class that is known already is used as it is; a pickle holds an object's attributes,
# and those of its class matter only where the class is seen for the first time.
# What happens: cloudpickle finds the class again, so isinstance() holds, and then sets all its
# attributes to what they were when the pickle was written. A worker that counts in a class
# attribute counts to one, with every message. A reply takes the sender's class back to what it
# was when the request left: no copy is changed, but the class that the program runs with. It
# happens with classes of scripts and notebooks, not with those of importable modules.
# Output seen:
#   the worker's count after each of three messages: [1, 1, 1]
#   the sender's limit: set to 20, after the reply 10
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check cloudpickle==3.1.3 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import pickle
import subprocess
import sys

import cloudpickle

WORKER = """
import pickle, sys, cloudpickle
for _ in range(3):
    job = pickle.load(sys.stdin.buffer)
    type(job).handled += 1
    sys.stdout.buffer.write(cloudpickle.dumps((job, type(job).handled)))
    sys.stdout.buffer.flush()
"""


class Job:
    handled = 0
    limit = 10


pipe = subprocess.PIPE
with subprocess.Popen([sys.executable, "-c", WORKER], stdin=pipe, stdout=pipe) as worker:
    for _ in range(3):
        worker.stdin.write(cloudpickle.dumps(Job()))
    worker.stdin.close()
    Job.limit = 20
    replies = [pickle.load(worker.stdout) for _ in range(3)]
counts = [count for _, count in replies]
print(f"the worker's count after each of three messages: {counts}")
print(f"the sender's limit: set to 20, after the reply {Job.limit}")
same = all(type(job) is Job for job, _ in replies)
sys.exit(not (same and counts == [1, 1, 1] and Job.limit == 10))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
