#!/usr/bin/env bash
# Whether a read-only array can be written to where it arrives depends on its strides, its type and
# the pickle protocol. A column of pandas 3 is read-only.
#
# Versions: numpy 2.4.6, pandas 3.1.1, CPython 3.11.7
# Expected: what a pickle holds is a copy, and a copy of an array is writable, as with protocol 4.
# Or, if the flag is kept, it is kept for all arrays.
# What happens: with protocol 5 a contiguous array that is read-only arrives read-only, out of band
# and within the pickle alike, and even if the memory that it lands in is writable. Every other one
# - a slice with a step, dates, protocol 4 - arrives writable. With pandas 3 to_numpy() of a column
# is read-only. So `prices *= 2` works where every second row was sent, and raises ValueError where
# the whole column was.
# Output seen:
#   column:                      sent read-only, arrives read-only
#   column, into a bytearray:    sent read-only, arrives read-only
#   column, protocol 4:          sent read-only, arrives writable
#   every second row:            sent read-only, arrives writable
#   dates:                       sent read-only, arrives writable
#   numpy.arange:                sent writable, arrives writable
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check numpy==2.4.6 pandas==3.1.1 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import pickle
import sys

import numpy as np
import pandas as pd


def through(array: np.ndarray, protocol: int = 5) -> np.ndarray:
    return pickle.loads(pickle.dumps(array, protocol=protocol))


def into_a_bytearray(array: np.ndarray) -> np.ndarray:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(array, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytearray(buffer.raw()) for buffer in buffers])


def named(array: np.ndarray) -> str:
    return "writable" if array.flags.writeable else "read-only"


frame = pd.DataFrame(
    {"price": np.arange(10.0), "day": pd.date_range("2026-01-01", periods=10)}
)
price, day, plain = frame["price"].to_numpy(), frame["day"].to_numpy(), np.arange(10.0)
cases = {
    "column": (price, through(price)),
    "column, into a bytearray": (price, into_a_bytearray(price)),
    "column, protocol 4": (price, through(price, 4)),
    "every second row": (price[::2], through(price[::2])),
    "dates": (day, through(day)),
    "numpy.arange": (plain, through(plain)),
}
for name, (sent, arrived) in cases.items():
    print(f"{name + ':':28} sent {named(sent)}, arrives {named(arrived)}")
sent = [array.flags.writeable for array, _ in cases.values()]
arrived = [array.flags.writeable for _, array in cases.values()]
sys.exit(sent != [False] * 5 + [True] or arrived != [False, False, True, True, True, True])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
