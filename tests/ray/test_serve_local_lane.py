"""The local lane on a real Ray Serve: who takes it, who does not, what killed replicas leave."""

from __future__ import annotations

import json
import os
import signal
import stat
import time

import pytest
import ray

import serve_grpc
from serve_grpc.errors import ReplicaDiedError
from tests.ray.apps.bench import OPTIONS, Workbench
from tests.ray.carriers import carriers_of, options_over
from tests.ray.listing import infos_of
from tests.ray.waiting import eventually

PATIENCE_S = 60


def app_over(carrier, **options):
    return serve_grpc.deployment(**options_over(carrier, {**OPTIONS, **options}))(Workbench)


def path_of(handle):
    """Of the socket of its only replica, as it was published; "" if there is none."""
    (info,) = infos_of(handle)
    return info.replica_metadata["serve_grpc"].get("local_path", "")


def is_ready(handle):
    return [r.state for r in serve_grpc.handle_statistics(handle).replicas] == ["ready"]


@pytest.fixture
def near(deploy):
    handle = deploy(app_over("local", health_check_period_s=0.5).bind(), "near")
    assert handle.remote(1).result(timeout_s=PATIENCE_S) == 1
    return handle


def test_calls_within_a_node_take_the_lane(near):
    assert carriers_of(near) == ["local"]
    assert list(near.options(method_name="items", stream=True).remote(3)) == [0, 1, 2]
    payload = os.urandom(3_000_000)
    assert near.remote(payload).result(timeout_s=PATIENCE_S) == payload
    assert serve_grpc.handle_statistics(near).local_fallbacks == 0


def test_the_socket_is_ours_alone_and_in_rays_directory(near):
    path = path_of(near)
    session = os.path.realpath(ray._private.worker.global_worker.node.get_session_dir_path())
    assert os.path.realpath(path).startswith(session + os.sep)
    found, directory = os.lstat(path), os.lstat(os.path.dirname(path))
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), stat.S_IMODE(directory.st_mode)) == (0o600, 0o700)
    assert found.st_uid == directory.st_uid == os.geteuid()


def test_a_replica_that_has_no_lane_is_called_over_grpc(deploy):
    handle = deploy(app_over("grpc").bind(), "without-lane")
    assert handle.remote(1).result(timeout_s=PATIENCE_S) == 1
    assert carriers_of(handle) == ["grpc"]
    assert path_of(handle) == ""
    assert serve_grpc.handle_statistics(handle).local_fallbacks == 0


@pytest.mark.parametrize("carrier", ["local", "grpc"])
def test_a_caller_that_wants_no_lane_has_none(deploy, carrier):
    """The variable of the caller; its replica has the lane."""

    class Caller:
        def __init__(self, inner):
            self.inner = inner.options(_by_reference=False)

        async def __call__(self, value):
            answer = await self.inner.remote(value)
            return answer, serve_grpc.handle_statistics(self.inner)

    caller = serve_grpc.deployment(**options_over(carrier, OPTIONS))(Caller)
    app = caller.bind(app_over("local").options(name="Called").bind())
    handle = deploy(app, f"caller-{carrier}")
    answer, statistics = handle.remote(1).result(timeout_s=PATIENCE_S)
    assert answer == 1
    assert [replica.carrier for replica in statistics.replicas] == [carrier]
    assert statistics.local_fallbacks == 0


def test_a_killed_replica_ends_its_calls_truthfully_and_its_socket_goes(near, key):
    pid, path = near.pid.remote().result(timeout_s=PATIENCE_S), path_of(near)
    held = near.hold.remote(key)
    stream = near.options(method_name="hold_stream", stream=True).remote(key, 2)
    assert [next(stream), next(stream)] == [0, 1]
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    for end in (lambda: held.result(timeout_s=PATIENCE_S), lambda: next(stream)):
        with pytest.raises(ReplicaDiedError) as raised:
            end()
        assert raised.value.may_have_executed
    assert time.monotonic() - killed_s < 5
    # Waits for the next replica, which starts with the cleaning.
    other = near.pid.remote().result(timeout_s=PATIENCE_S)
    assert other != pid
    assert not os.path.exists(path)
    assert os.path.exists(path_of(near))
    assert carriers_of(near) == ["local"]


@ray.remote(num_cpus=0)
def called_from_a_new_process(handle):
    """Returns the answer, how long it took, and the statistics."""
    begun_s = time.monotonic()
    answer = handle.remote(7).result(timeout_s=PATIENCE_S)
    return answer, time.monotonic() - begun_s, serve_grpc.handle_statistics(handle)


def test_without_the_socket_new_sessions_take_grpc_at_once_and_old_ones_go_on(deploy):
    handle = deploy(app_over("local").bind(), "unlinked")
    handle.remote(1).result(timeout_s=PATIENCE_S)
    _, usual_s, statistics = ray.get(called_from_a_new_process.remote(handle))
    assert [replica.carrier for replica in statistics.replicas] == ["local"]
    os.unlink(path_of(handle))
    answer, took_s, statistics = ray.get(called_from_a_new_process.remote(handle))
    assert answer == 7
    assert [replica.carrier for replica in statistics.replicas] == ["grpc"]
    assert statistics.local_fallbacks == 1
    assert took_s < usual_s + 5
    assert handle.remote(2).result(timeout_s=PATIENCE_S) == 2
    assert carriers_of(handle) == ["local"]


def test_a_replica_that_leaves_takes_its_socket_along(deploy):
    handle = deploy(app_over("local").bind(), "leaves")
    handle.remote(1).result(timeout_s=PATIENCE_S)
    path = path_of(handle)
    assert os.path.exists(path)
    # Another argument of the constructor: a new replica takes the place of the old one.
    deploy(app_over("local").bind(inner=None), "leaves")
    eventually(lambda: not os.path.exists(path), timeout_s=PATIENCE_S)
    assert handle.remote(2).result(timeout_s=PATIENCE_S) == 2
    assert path_of(handle) != path
    assert carriers_of(handle) == ["local"]


def test_between_two_nodes_calls_take_grpc(run_script):
    seen = json.loads(run_script("two_nodes", env={}).splitlines()[-1])
    assert seen == {"same node": "local", "other node": "grpc", "fallbacks": 0}
