"""One Ray Serve instance for the session, and the check that nothing leaks.

Ray starts with the first test that asks for `serve_instance`; tests without it need no Ray. When
the last test is over every application is deleted, and no session, channel or timer of the package
may be left in this process.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:  # `pytest` instead of `python -m pytest`
    sys.path.insert(0, ROOT)

# A call to Ray after the instance is gone is an error, not a reason to start another one.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

from tests.ray.instance import start_ray  # noqa: E402
from tests.ray.waiting import eventually  # noqa: E402

GRPC_SERVICER = "ray.serve.generated.serve_pb2_grpc.add_UserDefinedServiceServicer_to_server"
"""A service that Ray brings with it; what it does, a gRPC ingress decides."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-figures", help="write what the fault suite measured to this file")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := session.config.getoption("--fault-figures"):
        from tests.faults import figures

        figures.save(Path(path))


@pytest.fixture(scope="session")
def serve_instance() -> Iterator[None]:
    """A Ray of our own with Serve on it, on free ports."""
    import ray
    from ray import serve

    _remember_channels()
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
        ray.shutdown()
        # Serve's router thread goes on and would report every second, below pytest's last line,
        # that Ray is gone.
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    assert serve_leftovers == []


@pytest.fixture(autouse=True)
def _registered_serializers_stay_in_their_test() -> Iterator[None]:
    from serve_grpc import serialization

    before = dict(serialization._serializers)
    yield
    serialization._serializers.clear()
    serialization._serializers.update(before)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _delete_all_apps_and_find_leftovers() -> list[str]:
    from ray import serve

    for name in list(serve.status().applications):
        serve.delete(name)
    try:
        eventually(lambda: not leftovers(), timeout_s=10)
    except AssertionError:
        pass  # the caller's assertion shows what is left
    return leftovers()


def _remember_channels() -> None:
    """Keep an eye on every channel the package opens; Ray has channels of its own."""
    from serve_grpc.transport import client

    open_channel = client.open_channel

    def open_and_remember(*args: Any, **kwargs: Any) -> Any:
        channel = open_channel(*args, **kwargs)
        _channels.add(channel)
        return channel

    client.open_channel = open_and_remember


_channels: weakref.WeakSet[Any] = weakref.WeakSet()


def leftovers() -> list[str]:
    """What of the package is still alive in this process: sessions, channels, timers."""
    # Not above: scripts that import this file look at a process without the package.
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
    found += [f"open channel: {channel!r}" for channel in _channels if _is_open(channel)]
    found += [
        repr(thread)
        for thread in threading.enumerate()
        if ("serve_grpc" in thread.name and not thread.name.startswith(THREAD_NAME))
        or "serve_grpc" in repr(getattr(thread, "function", ""))
    ]
    return found


def _is_open(channel: object) -> bool:
    inner = getattr(channel, "_channel", None)
    return inner is not None and not inner.closed()
