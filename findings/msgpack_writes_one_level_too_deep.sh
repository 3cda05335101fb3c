#!/usr/bin/env bash
# msgpack writes a value that it cannot read: its packer goes one level deeper than its unpacker.
#
# Versions: msgpack 1.2.4, CPython 3.11.7
# Expected: what packb() accepts, unpackb() reads; what is nested too deeply is refused by
# packb().
# What happens: lists nested 1,024 levels deep survive. 1,025 levels are written without an error
# and refused with StackError where they are read - in another process, or years later. From 1,026
# on packb() refuses.
# Output seen:
#   1,024 levels: written and read
#   1,025 levels: written, not read
#   1,026 levels: not written
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check msgpack==1.2.4 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import sys

import msgpack


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels - 1):
        value = [value]
    return value


def told(levels: int) -> str:
    try:
        packed = msgpack.packb(nested(levels))
    except ValueError:
        return "not written"
    try:
        msgpack.unpackb(packed)
    except msgpack.exceptions.StackError:
        return "written, not read"
    return "written and read"


found = {levels: told(levels) for levels in (1024, 1025, 1026)}
for levels, what in found.items():
    print(f"{levels:,} levels: {what}")
sys.exit(list(found.values()) != ["written and read", "written, not read", "not written"])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
