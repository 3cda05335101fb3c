"""Who may hold a handle, beside replicas: drivers, tasks, actors, Ray Clients, and local tests."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from ray import serve

import serve_grpc
from tests.ray.apps.operations import OPTIONS, AskingActor, Back, Relay, ask_in_a_task
from tests.ray.apps.plain import Plain
from tests.ray.compat.behaviours import BY_REFERENCE, OURS, behaviour
from tests.ray.instance import free_port
from tests.ray.waiting import eventually

pytestmark = pytest.mark.timeout(400)

CALL_S = 30.0


@pytest.fixture(scope="module")
def echo(deploy):
    """A handle to one replica."""
    return deploy(serve_grpc.deployment(**OPTIONS)(Back).bind(), "untouched")


@behaviour("Operations", "A handle works in a Ray task, which blocks for the answer")
def test_a_handle_in_a_task(echo, transport):
    answer = ask_in_a_task.remote(transport.name, echo, ["x", 1])
    assert ray.get(answer, timeout=120) == ["x", 1]


@pytest.fixture(scope="module")
def actor(serve_instance: None) -> Iterator[Any]:
    """An actor that is not Serve's."""
    actor = AskingActor.remote()
    yield actor
    ray.kill(actor)


@behaviour("Operations", "A handle works in the event loop of an actor that is not Serve's")
def test_a_handle_in_an_actor(echo, actor, transport):
    answers = actor.ask.remote(transport.name, echo, list(range(20)))
    assert ray.get(answers, timeout=120) == list(range(20))


@behaviour("Operations", "Threads share a handle")
def test_threads_share_a_handle(echo, transport):
    handle = transport.over(echo).echo

    def work(worker: int) -> list[Any]:
        return [handle.remote([worker, i]).result(timeout_s=CALL_S) for i in range(10)]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(work, range(8)))
    assert answers == [[[worker, i] for i in range(10)] for worker in range(8)]


@behaviour("Operations", "Event loops share a handle, one after the other and side by side")
def test_event_loops_share_a_handle(echo, transport):
    handle = transport.over(echo).echo

    async def main(worker: int) -> list[Any]:
        return list(await asyncio.gather(*(handle.remote([worker, i]) for i in range(10))))

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda worker: asyncio.run(main(worker)), range(8)))
    assert answers == [[[worker, i] for i in range(10)] for worker in range(8)]


@pytest.fixture(scope="module")
def by_client(serve_instance: None, run_script: Callable[..., str]) -> Iterator[Any]:
    """What a Ray Client saw: a process of its own, connected to a Ray Client server of ours."""
    port = free_port()
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray.util.client.server", "--mode", "specific-server"]
    command += ["--address", address, "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            eventually(lambda: is_listening(port), timeout_s=90)
            env = {"RAY_ADDRESS": f"ray://127.0.0.1:{port}"}
            yield json.loads(run_script("ray_client", env=env, timeout_s=180).splitlines()[-1])
        finally:
            server.terminate()


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@behaviour("Operations", "Ray Client (`ray://`) deploys and calls; streams are refused")
def test_ray_client(by_client, transport):
    """A call by value falls back to Serve's own transport."""
    seen = by_client[transport.name]
    assert seen["answers"] == [0, 1, 2]
    assert "a bad value" in seen["error"]
    assert seen["error"].startswith(("ValueError", "RayTaskError(ValueError)"))
    assert "Streaming DeploymentHandles are not currently supported" in seen["stream"]


@behaviour(
    "Operations", "Local testing mode: composed calls, streams and errors, without a cluster"
)
def test_local_testing_mode(transport):
    """A call by value falls back to Serve's own local one."""
    decorate = serve_grpc.deployment if transport.name == OURS else serve.deployment
    by_reference = transport.name == BY_REFERENCE
    app = decorate(Relay).bind(decorate(Plain).bind(), by_reference)
    handle = serve.run(app, name=f"local-{transport.name}", _local_testing_mode=True)
    if transport.name == OURS:
        handle = serve_grpc.wrap(handle)
    handle = handle.options(_by_reference=by_reference)
    assert [handle.remote(i).result() for i in range(3)] == [0, 1, 2]
    assert list(handle.options(method_name="items", stream=True).remote(3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="a bad value"):
        handle.fail.remote("ValueError").result()
