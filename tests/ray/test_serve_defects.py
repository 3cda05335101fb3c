"""What goes wrong with Ray Serve's own gRPC transport, and does not here."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket

import pytest
import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RequestCancelledError

import serve_grpc
from serve_grpc.errors import MessageTooLargeError, ReplicaDiedError
from tests.ray.apps.failures import Detailed
from tests.ray.apps.gated import Board, Gated
from tests.ray.apps.plain import Plain
from tests.ray.listing import infos_of
from tests.ray.waiting import eventually

OPTIONS = {"graceful_shutdown_wait_loop_s": 0.1, "graceful_shutdown_timeout_s": 3}
CPU = {"num_cpus": 0.01}


def addresses(handle):
    """Where the replicas listen, as their metadata says."""
    handle.remote().result(timeout_s=20)
    return [info.replica_metadata["serve_grpc"]["address"] for info in infos_of(handle)]


def with_env(env, cls=Plain, **options):
    actor_options = {**CPU, "runtime_env": {"env_vars": env}}
    return serve_grpc.deployment(**OPTIONS, ray_actor_options=actor_options, **options)(cls)


def test_defect_01_request_over_4_mib_is_an_error_with_size_and_advice(bench):
    with pytest.raises(MessageTooLargeError, match="_by_reference=True"):
        bench.length.remote(b"x" * (5 << 20)).result(timeout_s=20)


@pytest.mark.parametrize("name", ["msgpack", "orjson"])
def test_defect_02_user_exceptions_do_not_pass_through_the_serializer(bench, name):
    handle = bench.options(request_serialization=name, response_serialization=name)
    with pytest.raises(Detailed) as raised:
        handle.fail.remote("Detailed").result(timeout_s=20)
    assert raised.value.code == 42


def test_defect_03_rejections_do_not_pass_through_the_serializer(deploy, tmp_path):
    board = Board(tmp_path)
    gated = with_env({}, Gated, max_ongoing_requests=1, num_replicas=2)
    handle = deploy(gated.bind(), "defect-03")
    handle = handle.options(request_serialization="orjson", response_serialization="orjson")
    other = serve_grpc.get_app_handle("defect-03").options(_by_reference=False)
    responses = [h.remote(board.path, f"{i}") for i in range(4) for h in (handle, other)]
    eventually(lambda: board.count("start") == 2)
    board.release()
    assert sorted(r.result(timeout_s=20) for r in responses) == sorted("00112233")
    assert board.most_running == 1


def test_defect_04_remote_traceback_is_kept(bench):
    with pytest.raises(ray.exceptions.RayTaskError, match=r"raise errors\[kind\]"):
        bench.fail.remote("ValueError").result(timeout_s=20)


def test_defect_05_unpicklable_exception_arrives_as_text(bench):
    with pytest.raises(ray.exceptions.RayTaskError, match="holds a lock"):
        bench.fail.remote("Unpicklable").result(timeout_s=20)


def test_defect_06_cancelled_error_of_a_handler_is_not_the_callers_cancellation(bench):
    async def main():
        with pytest.raises(RequestCancelledError):
            await bench.fail.remote("CancelledError")
        return await bench.remote("goes on")

    assert asyncio.run(main()) == "goes on"


def test_defect_07_a_running_call_does_not_count_as_queued(bench, key):
    hold = bench.hold
    response = hold.remote(key)
    eventually(lambda: bench.watch.remote(key).result(timeout_s=20)["note"] == "running")
    metrics = hold._router._asyncio_router._metrics_manager
    eventually(lambda: sum(metrics.num_requests_sent_to_replicas.values()) == 1)
    assert metrics.num_queued_requests == 0
    bench.release.remote(key).result(timeout_s=20)
    response.result(timeout_s=20)
    eventually(lambda: sum(metrics.num_requests_sent_to_replicas.values()) == 0)


def test_defect_08_a_slow_consumer_pauses_its_producer(bench, key):
    stream = bench.options(method_name="endless", stream=True).remote(key, 20_000)
    next(stream)
    for _ in range(50):
        bench.remote(1).result(timeout_s=20)
    assert bench.watch.remote(key).result(timeout_s=20)["produced"] < 100
    stream.cancel()


def test_defect_09_a_dead_replica_is_not_attractive(deploy, tmp_path):
    board = Board(tmp_path)
    handle = deploy(with_env({}, Gated, num_replicas=2).bind(), "defect-09")
    held = [handle.remote(board.path, f"{i}") for i in range(2)]
    eventually(lambda: board.count("start") == 2)
    victim = int(board.lines("start")[0][2])
    os.kill(victim, signal.SIGKILL)
    board.release()
    outcomes = []
    for response in held:
        try:
            outcomes.append(response.result(timeout_s=20))
        except ReplicaDiedError as error:
            outcomes.append(error.may_have_executed)
    assert True in outcomes
    # From the moment the loss is known, no call goes there.
    assert victim not in {handle.pid.remote().result(timeout_s=20) for _ in range(40)}


@pytest.mark.parametrize("name", ["msgpack", "orjson"])
def test_defect_10_every_serializer_works_as_installed(bench, name):
    handle = bench.options(request_serialization=name, response_serialization=name)
    assert handle.remote({"a": [1, None, "x"]}).result(timeout_s=20) == {"a": [1, None, "x"]}


def test_defect_11_sync_result_works_under_the_throughput_flags(run_script):
    run_script("throughput_optimized", env={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"})


def test_defect_12_opting_in_does_not_move_the_proxies(bench):
    assert bench.remote(1).result(timeout_s=20) == 1
    controller = serve.context._get_global_client()._controller
    location = ray.get(controller.get_proxy_location.remote(), timeout=20)
    assert location == ProxyLocation.EveryNode


def test_defect_13_replicas_listen_within_the_range_of_ports(deploy):
    start = free_range(4)
    env = {"SERVE_GRPC_MIN_PORT": str(start), "SERVE_GRPC_MAX_PORT": str(start + 3)}
    handle = deploy(with_env(env, num_replicas=2).bind(), "defect-13")
    ports = {int(address.rsplit(":", 1)[1]) for address in addresses(handle)}
    assert len(ports) == 2
    assert ports <= set(range(start, start + 4))
    assert handle.remote("x").result(timeout_s=20) == "x"


def free_range(length):
    """The first of `length` free ports in a row, below those the system gives out."""
    for start in itertools.count(21_000 + os.getpid() % 5_000, length):
        sockets = [socket.socket() for _ in range(length)]
        try:
            for offset, listener in enumerate(sockets):
                listener.bind(("0.0.0.0", start + offset))
            return start
        except OSError:
            continue
        finally:
            for listener in sockets:
                listener.close()
    raise AssertionError


def test_defect_14_ipv6_addresses_have_brackets_and_work(deploy):
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    handle = deploy(with_env({"SERVE_GRPC_BIND_HOST": "::1"}).bind(), "defect-14")
    (address,) = addresses(handle)
    assert address.startswith("[::1]:")
    assert handle.remote("x").result(timeout_s=20) == "x"
    assert not handle.remote("x").by_reference


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
