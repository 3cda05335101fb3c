"""The benchmark keeps serve_grpc out of the processes that measure Serve's own transports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import serve_grpc
from bench.on_serve.deployed import callee_of
from bench.on_serve.sides import CarrierWatch, actor_options, check_own_side
from bench.plan.contenders import GRPC_ONLY, OURS, OVER_GRPC, parse, serves
from bench.plan.plans import full_plan
from serve_grpc.config import Settings

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = (
    "on_serve.apps",
    "on_serve.deployed",
    "on_serve.drivers",
    "on_serve.worker",
    "load.floors",
    "http.chain",
    "http.server",
)
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
    assert parse(OVER_GRPC).side == "serve_grpc"


# ------------------------------------------------------------ carriers


def test_callers_over_grpc_have_no_lane_and_all_others_are_as_they_come() -> None:
    carriers = {name: parse(name).carrier for name in ("by reference", *serves(), OURS, OVER_GRPC)}
    assert (carriers.pop(OURS), carriers.pop(OVER_GRPC)) == ("local", "grpc")
    assert set(carriers.values()) == {""}
    variables = actor_options("grpc")["runtime_env"]["env_vars"]
    assert variables == GRPC_ONLY
    assert not Settings.from_environ(variables).local
    for carrier in ("", "local"):
        assert "runtime_env" not in actor_options(carrier)


def test_both_carriers_have_the_same_callee() -> None:
    for case in full_plan().cases:
        assert callee_of(case, parse(OURS)) == callee_of(case, parse(OVER_GRPC))
    (memory,) = full_plan().only(["memory"]).cases
    assert callee_of(memory, parse(OURS)) != callee_of(memory, parse(OVER_GRPC))


class OurHandle:
    """In the place of a handle of ours, by the module that it is in."""

    __module__ = "serve_grpc.handle"


def watched(monkeypatch: pytest.MonkeyPatch, *seen: Any) -> str:
    """What a watch says if the statistics are these, one after the other."""
    answers = iter(seen)
    monkeypatch.setattr(serve_grpc, "handle_statistics", lambda _handle: next(answers))
    return CarrierWatch(OurHandle()).seen()  # type: ignore[arg-type]


def statistics(*carriers: str, fallbacks: int = 0, transport: str = "serve_grpc") -> Any:
    replicas = [SimpleNamespace(carrier=carrier) for carrier in carriers]
    return SimpleNamespace(local_fallbacks=fallbacks, transport=transport, replicas=replicas)


def test_a_watch_tells_every_carrier_that_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = statistics(fallbacks=1)
    assert watched(monkeypatch, before, statistics("local", "local", "", fallbacks=1)) == "local"
    assert watched(monkeypatch, before, statistics("local", "grpc", fallbacks=1)) == "grpc,local"
    # It is the lane's again, but was not all the time.
    assert watched(monkeypatch, before, statistics("local", fallbacks=2)) == "grpc,local"
    assert watched(monkeypatch, before, statistics("")) == ""
    fallen = statistics(transport="Serve's gRPC")
    assert watched(monkeypatch, before, fallen) == "Serve's gRPC"


def test_a_watch_of_serves_handle_does_not_look() -> None:
    assert CarrierWatch(object()).seen() == ""  # type: ignore[arg-type]
