"""What becomes of payloads in the store when a replica or a caller dies, in turn.

Each is a scenario of `driver_scripts/oversize.py`, and is given its handle.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from serve_grpc._serve import store
from serve_grpc.caller import lending
from serve_grpc.errors import (
    ReplicaDiedError,
)
from tests.ray.apps.oversize import Caller, Waits, array, echo_app
from tests.ray.waiting import eventually

__all__ = ["DEATHS", "FREED_S", "raised"]

FREED_S = 40.0


def raised(kind: type[BaseException], response: Any) -> Any:
    """The error of a response."""
    with pytest.raises(kind) as error:
        response.result(timeout_s=60)
    return error.value


def a_request_that_is_repeated_keeps_its_object(echo: Any) -> None:
    handle = echo_app("Two", "two", num_replicas=2)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "died")
        length = handle.options(idempotent=True).die_once.remote(array(), path)
        assert length.result(timeout_s=90) == len(array())
        second = handle.die_once.remote(array(), str(Path(folder) / "second"))
        assert raised(ReplicaDiedError, second).may_have_executed
    serve.delete("two")


def _result_of_a_replica_that_dies(patched: Any, name: str) -> None:
    handle = echo_app("Dies", "dies")
    pid = handle.pid.remote().result(timeout_s=60)
    handle.echo.remote(array()).result(timeout_s=60)
    real = getattr(patched, name)

    def after_its_death(*args: Any) -> Any:
        setattr(patched, name, real)
        os.kill(pid, signal.SIGKILL)
        return real(*args)

    setattr(patched, name, after_its_death)
    started_s = time.monotonic()
    error = raised(ReplicaDiedError, handle.echo.remote(array()))
    # It tells of its session or of the object store, whichever is seen to be lost first.
    assert (error.may_have_executed, bool(error.replica_id)) == (True, True), error
    assert time.monotonic() - started_s < 30
    # Serve starts another one, and it is as good as the first.
    assert np.array_equal(handle.echo.remote(array()).result(timeout_s=90), array())
    serve.delete("dies")


def a_replica_dies_before_its_result_is_fetched(echo: Any) -> None:
    _result_of_a_replica_that_dies(lending, "ask")


def a_replica_dies_while_its_result_is_fetched(echo: Any) -> None:
    real = store.fetch

    def only_what_is_gone(ref: Any, is_wanted: Any) -> Any:
        # What is on this node already would be found there, whoever has died.
        time.sleep(3)
        return real(ref, is_wanted)

    handle = echo_app("Dies", "dies2")
    pid = handle.pid.remote().result(timeout_s=60)
    killed = []

    def kill_first(ref: Any, is_wanted: Any) -> Any:
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        return only_what_is_gone(ref, is_wanted)

    store.fetch = kill_first
    try:
        response = handle.echo.remote(array())
        error = raised(ReplicaDiedError, response)
        assert (error.may_have_executed, killed) == (True, [pid]), error
    finally:
        store.fetch = real
    serve.delete("dies2")


def a_replica_that_is_stopped_stays_until_its_results_were_fetched(echo: Any) -> None:
    handle = echo_app("Leaves", "leaves", graceful_shutdown_wait_loop_s=0.1)
    pid = handle.pid.remote().result(timeout_s=60)
    real = store.fetch
    alive: list[bool] = []

    def late(ref: Any, is_wanted: Any) -> Any:
        time.sleep(3)  # it would be gone by then, and with it what it has put
        alive.append(Path(f"/proc/{pid}").exists())
        return real(ref, is_wanted)

    store.fetch = late
    try:
        with tempfile.TemporaryDirectory() as folder:
            started = Path(folder) / "started"
            response = handle.echo_late.remote(array(), str(started))
            eventually(started.exists)
            serve.delete("leaves", _blocking=False)
            assert np.array_equal(response.result(timeout_s=60), array())
        assert alive == [True]
    finally:
        store.fetch = real
    del response
    eventually(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=FREED_S)


def a_caller_dies_while_its_request_is_fetched(echo: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        go = str(Path(folder) / "go")
        handle = echo_app("Waits", "waits", Waits, go, max_ongoing_requests=1)
        caller = Caller.remote(handle)
        pid = ray.get(caller.pid.remote(), timeout=60)
        ray.get(caller.start.remote(), timeout=60)
        eventually(Path(go + ".fetches").exists, timeout_s=60)
        os.kill(pid, signal.SIGKILL)
        # It holds the only slot until its replica has noticed; nothing of it waits for the thread.
        assert handle.pid.remote().result(timeout_s=60)
        Path(go).touch()
        assert handle.size.remote(array()).result(timeout_s=60) == len(array())
    serve.delete("waits")


DEATHS: tuple[Callable[[Any], None], ...] = (
    a_request_that_is_repeated_keeps_its_object,
    a_replica_dies_before_its_result_is_fetched,
    a_replica_dies_while_its_result_is_fetched,
    a_replica_that_is_stopped_stays_until_its_results_were_fetched,
    a_caller_dies_while_its_request_is_fetched,
)
