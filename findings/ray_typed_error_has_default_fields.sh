#!/usr/bin/env bash
# The exception that Ray raises for a task's exception is of its type, and has the default values
# in its fields.
#
# Versions: ray 2.60.0, CPython 3.11.7
# Expected: `except Quota as error` finds error.used == 7, as the task raised it; `except OSError
# as error` finds its errno.
# What happens: Ray makes a class of both RayTaskError and the exception's own, and copies no
# attributes. An attribute that the class itself defines is found there: a dataclass' field has
# its default, a member of a built-in exception is None. Only what no class defines is looked up
# in the true exception, which is error.cause. So code that reads a field to decide something
# decides wrongly, without an AttributeError.
# Output seen:
#   Quota.used is 0 - that of its cause 107
#   OSError.errno is None - that of its cause 2
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'ray==2.60.0' || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import dataclasses
import sys

import ray


@dataclasses.dataclass
class Quota(Exception):
    used: int = 0
    limit: int = 100


@ray.remote
def over() -> None:
    raise Quota(used=107)


@ray.remote
def missing() -> None:
    open("/no/such/file")


ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
try:
    try:
        ray.get(over.remote())
    except Quota as error:
        print("Quota.used is", error.used, "- that of its cause", error.cause.used)
        used = error.used, error.cause.used
    try:
        ray.get(missing.remote())
    except OSError as error:
        print("OSError.errno is", error.errno, "- that of its cause", error.cause.errno)
        errno = error.errno, error.cause.errno
finally:
    ray.shutdown()
sys.exit(not (used == (0, 107) and errno == (None, 2)))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
