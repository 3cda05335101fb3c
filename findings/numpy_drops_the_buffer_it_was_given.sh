#!/usr/bin/env bash
# A NumPy array does not keep the buffer alive that it was made of, only the memory behind it: a
# finalizer on the buffer runs while the array is in use.
#
# Versions: numpy 2.4.6, CPython 3.11.7
# Expected: pickle.loads(data, buffers=[view]) and numpy.frombuffer(view) give arrays that hold
# `view`, so weakref.finalize(view, ...) tells when the last array is gone, and the place in shared
# memory can be used again.
# What happens: an array of a memoryview, or of another array's slice, holds what that was made
# of, the whole mapping. The view itself is collected at once, the finalizer runs, the place is
# filled anew, and the array shows the next message. No error: the mapping is alive. An exporter
# of its own for each place, such as a ctypes array, is kept.
# Output seen:
#   memoryview:  finalizer ran while the array was in use: True, the array now reads 2.0
#   array slice: finalizer ran while the array was in use: True, the array now reads 2.0
#   ctypes:      finalizer ran while the array was in use: False, the array now reads 1.0
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check numpy==2.4.6 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import ctypes
import mmap
import pickle
import sys
import weakref

import numpy as np

memory = mmap.mmap(-1, 1 << 16)
SIZE = 8_000


def memoryview_of_place():
    return memoryview(memory)[:SIZE]


def slice_of_place():
    return np.frombuffer(memory, np.uint8)[:SIZE]


def ctypes_of_place():
    return (ctypes.c_char * SIZE).from_buffer(memory)


def fill(value: float) -> None:
    memory[:SIZE] = np.full(SIZE // 8, value).tobytes()


buffers: list[pickle.PickleBuffer] = []
data = pickle.dumps(np.zeros(SIZE // 8), protocol=5, buffer_callback=buffers.append)
found = []
kinds = {
    "memoryview": memoryview_of_place,
    "array slice": slice_of_place,
    "ctypes": ctypes_of_place,
}
for name, place in kinds.items():
    fill(1.0)
    buffer = place()
    free = weakref.finalize(buffer, fill, 2.0)  # the next message comes
    array = pickle.loads(data, buffers=[buffer])
    del buffer
    found.append((not free.alive, float(array[0])))
    free.detach()
    print(
        f"{name + ':':12} finalizer ran while the array was in use: {found[-1][0]}, "
        f"the array now reads {found[-1][1]}"
    )
sys.exit(found != [(True, 2.0), (True, 2.0), (False, 1.0)])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
