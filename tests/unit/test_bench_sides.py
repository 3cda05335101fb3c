"""The benchmark keeps serve_grpc out of the processes that measure Serve's own transports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import serve_grpc
from bench.contenders import OURS, parse, serves
from bench.sides import check_own_side

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = ("apps", "deployed", "drivers", "floors", "http_chain", "http_server", "worker")
"""By replicas, by drivers, or by the main module of a process that such ones come from."""


def test_what_their_processes_import_leaves_serve_grpc_out() -> None:
    modules = ", ".join(f"bench.{name}" for name in IMPORTED)
    code = f"import sys, {modules}; print(*(n for n in sys.modules if n.startswith('serve_grpc')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_a_process_that_imported_it_does_not_measure_them() -> None:
    assert serve_grpc.__name__ in sys.modules
    with pytest.raises(RuntimeError, match="imported serve_grpc"):
        check_own_side("serve")
    check_own_side("serve_grpc")


def test_contenders_are_on_the_side_of_who_provides_them() -> None:
    assert {parse(name).side for name in ("by reference", *serves())} == {"serve"}
    assert parse(f"{OURS} (4 callers)").side == "serve_grpc"
