#!/usr/bin/env bash
# SciPy's linear algebra writes into arrays that are read-only, and so into bytes objects and into
# memory that others read.
#
# Versions: scipy 1.17.1, numpy 2.4.6, CPython 3.11.7
# Expected: overwrite_a=True permits a function to spoil its input; if that is read-only, it
# raises ValueError, as all of NumPy and SciPy's own fft do, or makes a copy.
# What happens: scipy.linalg ignores the flag wherever it can work in place: matrices in Fortran
# order, right-hand sides. No error, no warning. Arrays over bytes, memory maps and object stores
# are read-only because somebody else has the same memory. Here a bytes object changes, which
# nothing in Python can do; in ray 2.60.0, which is not installed here, a matrix in the object
# store that one task inverts so is the inverse for all who read it later. In C order the same call
# leaves it alone, because it must copy.
# Output seen:
#   inv, Fortran order:   the bytes object has changed
#   inv, C order:         as it was
#   qr, Fortran order:    the bytes object has changed
#   solve, right side:    the bytes object has changed
#   cholesky, Fortran:    the bytes object has changed
#   fft:                  as it was, ValueError
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check scipy==1.17.1 numpy==2.4.6 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import sys

import numpy as np
import scipy.fft
import scipy.linalg

MATRIX = np.diag(np.arange(1.0, 21.0)) + 0.01


def outcome(array: np.ndarray, function) -> str:
    data = array.tobytes(order="A")
    before = bytes(bytearray(data))
    order = "C" if array.flags.c_contiguous else "F"
    frozen = np.frombuffer(data, array.dtype).reshape(array.shape, order=order)
    assert not frozen.flags.writeable
    error = ""
    try:
        function(frozen)
    except ValueError:
        error = ", ValueError"
    return ("as it was" if data == before else "the bytes object has changed") + error


fortran = np.asfortranarray(MATRIX)
linalg = scipy.linalg
cases = {
    "inv, Fortran order": (fortran, lambda a: linalg.inv(a, overwrite_a=True)),
    "inv, C order": (MATRIX, lambda a: linalg.inv(a, overwrite_a=True)),
    "qr, Fortran order": (fortran, lambda a: linalg.qr(a, overwrite_a=True)),
    "solve, right side": (np.ones(20), lambda b: linalg.solve(MATRIX, b, overwrite_b=True)),
    "cholesky, Fortran": (fortran, lambda a: linalg.cholesky(a, overwrite_a=True)),
    "fft": (np.ones(20, complex), lambda x: scipy.fft.fft(x, overwrite_x=True)),
}
found = {name: outcome(*case) for name, case in cases.items()}
for name, what in found.items():
    print(f"{name + ':':21} {what}")
changed = [what.startswith("the bytes") for what in found.values()]
sys.exit(changed != [True, False, True, True, True, False] or "Error" not in found["fft"])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
