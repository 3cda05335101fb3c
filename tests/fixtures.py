"""One Ray Serve instance for the session, and the check that nothing leaks.

The `conftest.py` of the repository loads this file, so that the tests of the package and those of
the benchmark share one instance. Ray starts with the first test that asks for `serve_instance`;
tests without it need no Ray. When the last test is over every application is deleted, and no
session, channel or timer of the package may be left in this process.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray.instance import free_port, start_ray
from tests.ray.waiting import eventually

__all__ = ["deploy", "leftovers", "run_script", "serve_instance"]

ROOT = str(Path(__file__).resolve().parent.parent)

# A call to Ray after the instance is gone is an error, not a reason to start another one.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# Ray's agent on each node looks at every process so often; at its default of 5 s that takes a tenth
# of a core, all the time, of each Ray that a suite has running.
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
# On a busy machine Serve would give its proxy up while it starts, and `serve.start` fails with it.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "40")
# Else each of a thousand workers would compile our modules and those of the tests once more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["SERVE_GRPC_STRICT_STATES"] = "1"  # read when serve_grpc is imported, in workers too

GRPC_SERVICER = "ray.serve.generated.serve_pb2_grpc.add_UserDefinedServiceServicer_to_server"
"""A service that Ray brings with it; what it does, a gRPC ingress decides."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-figures", help="write what the fault suite measured to this file")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := session.config.getoption("--fault-figures"):
        from tests.faults import figures

        figures.save(Path(path))


def pytest_collection_finish() -> None:
    """Spare the collector what was imported for the tests: a hundred of them ask it what is gone,
    again and again, and each time it would look at the 300,000 objects that stay (0.25 s)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def serve_instance() -> Iterator[None]:
    """A Ray of our own with Serve on it, on free ports."""
    import ray
    from ray import serve
    from ray.serve._private import client as serve_client

    # How often it asks whether an application runs; it would be once a second.
    patch = pytest.MonkeyPatch()
    patch.setattr(serve_client, "CLIENT_POLLING_INTERVAL_S", 0.25)
    # Workers import the deployments of tests/ray/apps, and nothing else of the tests.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = ROOT if not path else f"{ROOT}{os.pathsep}{path}"
    start_ray(num_cpus=8, _system_config={"metrics_report_interval_ms": 500})
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": free_port()},
            grpc_options={"port": free_port(), "grpc_servicer_functions": [GRPC_SERVICER]},
        )
        yield
        serve_leftovers = _delete_all_apps_and_find_leftovers()
        serve.shutdown()
    finally:
        patch.undo()
        ray.shutdown()
        # Serve's router thread goes on and would report every second, below pytest's last line,
        # that Ray is gone.
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    assert serve_leftovers == []


@pytest.fixture(scope="module")
def deploy(serve_instance: None) -> Iterator[Callable[..., Any]]:
    """Runs applications that go away with the module; gives by-value handles."""
    from ray import serve

    import serve_grpc

    handles: dict[str, Any] = {}

    def deploy(app: Any, name: str, **options: Any) -> Any:
        handle = serve_grpc.run(app, name=name, **{"route_prefix": None, **options})
        handles[name] = handle.options(_by_reference=False)
        return handles[name]

    yield deploy
    for name, handle in handles.items():
        handle.shutdown()
        serve.delete(name, _blocking=False)


@pytest.fixture(scope="session")
def run_script() -> Callable[..., str]:
    """`tests.ray.scripts.run_script`. Who uses it is in the tier `full`: see `tests/tiers.py`."""
    from tests.ray.scripts import run_script

    return run_script


@pytest.fixture(autouse=True)
def _registered_serializers_stay_in_their_test() -> Iterator[None]:
    from serve_grpc import serialization

    before = dict(serialization._serializers)
    yield
    serialization._serializers.clear()
    serialization._serializers.update(before)


def _delete_all_apps_and_find_leftovers() -> list[str]:
    from ray import serve

    for name in list(serve.status().applications):
        serve.delete(name)
    try:
        eventually(lambda: not leftovers(), timeout_s=10)
    except AssertionError:
        pass  # the caller's assertion shows what is left
    return leftovers()


def leftovers() -> list[str]:
    """What of the package is still alive in this process: sessions, channels, timers."""
    # Not above: scripts that import this file look at a process without the package.
    from serve_grpc.carriers.grpc.dial import open_links
    from serve_grpc.carriers.local import dial as local_dial
    from serve_grpc.threads import THREAD_NAME

    gc.collect()
    with warnings.catch_warnings():  # some libraries' objects warn when they are looked at
        warnings.simplefilter("ignore")
        objects = gc.get_objects()
    found = []
    for thing in objects:
        kind = type(thing)
        if issubclass(kind, asyncio.Task) and not thing.done():
            code = getattr(thing.get_coro(), "cr_code", None)
            if code is not None and f"{os.sep}serve_grpc{os.sep}" in code.co_filename:
                found.append(repr(thing))
    found += [f"open channel: {link!r}" for link in open_links()]
    found += [f"open socket: {link!r}" for link in local_dial.open_links()]
    found += [
        repr(thread)
        for thread in threading.enumerate()
        if ("serve_grpc" in thread.name and not thread.name.startswith(THREAD_NAME))
        or "serve_grpc" in repr(getattr(thread, "function", ""))
    ]
    return found
