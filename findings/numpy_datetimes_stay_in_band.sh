#!/usr/bin/env bash
# NumPy arrays of dates are never pickled out of band, however plain their memory; an integer
# array of the same bytes is.
#
# Versions: numpy 2.4.6, CPython 3.11.7
# Expected: with protocol 5 and a buffer_callback, a contiguous array of a fixed-size type gives
# its memory away as a PickleBuffer, without a copy: int64 and datetime64[ns] alike, eight bytes
# an item.
# What happens: Python's buffer protocol has no code for dates, so datetime64 and timedelta64
# arrays are copied into the pickle, silently; so are structured arrays that have one such field.
# What relies on out-of-band buffers (shared memory of Ray and joblib, dask, MPI) copies them, and
# may refuse a large one. A view as int64 travels.
# Output seen:
#   dates:                8,000,180 bytes in the pickle,         0 beside it
#   the same as int64:          121 bytes in the pickle, 8,000,000 beside it
#   records with a date: 16,000,280 bytes in the pickle,         0 beside it
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check numpy==2.4.6 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import pickle
import sys

import numpy as np

ITEMS = 1_000_000


def pickled(array: np.ndarray) -> tuple[int, int]:
    """Bytes in the pickle, bytes beside it."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(array, protocol=5, buffer_callback=buffers.append)
    return len(data), sum(buffer.raw().nbytes for buffer in buffers)


dates = np.arange(ITEMS).astype("datetime64[ns]")
records = np.zeros(ITEMS, dtype=[("when", "datetime64[ns]"), ("value", "f8")])
cases = {"dates": dates, "the same as int64": dates.view("int64"), "records with a date": records}
found = {name: pickled(array) for name, array in cases.items()}
for name, (inside, beside) in found.items():
    print(f"{name + ':':20} {inside:>10,} bytes in the pickle, {beside:>9,} beside it")
in_band = [beside == 0 and inside > ITEMS for inside, beside in found.values()]
sys.exit(in_band != [True, False, True])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
