"""Which transport carries a call: per call, by default, and where ours is not available."""

from __future__ import annotations

import logging

import pytest
from ray import serve

import serve_grpc
from tests.ray.apps.plain import Plain
from tests.ray.scripts import on_shared_ray

CPU = {"num_cpus": 0.01}


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @property
    def fallbacks(self) -> list[str]:
        return [line for line in self.lines if "Ray Serve's own transport" in line]


@pytest.fixture
def serve_log():
    handler = Lines()
    logging.getLogger("ray.serve").addHandler(handler)
    yield handler
    logging.getLogger("ray.serve").removeHandler(handler)


@pytest.fixture(scope="module")
def plain(deploy):
    deploy(serve.deployment(ray_actor_options=CPU)(Plain).bind(), "plain")


def test_transports_alternate_on_one_handle(bench):
    by_reference = bench.options(_by_reference=True)
    for i in range(20):
        handle = by_reference if i % 2 else bench
        response = handle.remote(i)
        assert response.by_reference is bool(i % 2)
        assert response.result(timeout_s=20) == i


def test_transports_alternate_for_streams(bench):
    for i in range(6):
        stream = bench.options(method_name="items", stream=True, _by_reference=bool(i % 2)).remote(
            i
        )
        assert stream.by_reference is bool(i % 2)
        assert list(stream) == list(range(i))


def test_a_handle_is_by_reference_unless_told_otherwise(bench):
    handle = serve_grpc.get_app_handle("bench")
    assert handle.remote(1).by_reference
    assert not handle.options(_by_reference=False).remote(1).by_reference


def test_responses_are_of_serves_classes(bench):
    from ray.serve import handle as serve_handle

    assert isinstance(bench, serve_handle.DeploymentHandle)
    for by_reference in (True, False):
        handle = bench.options(_by_reference=by_reference)
        response, stream = handle.remote(1), handle.options(stream=True).items.remote(1)
        assert isinstance(response, serve_grpc.DeploymentResponse)
        assert isinstance(response, serve_handle.DeploymentResponse)
        assert isinstance(stream, serve_grpc.DeploymentResponseGenerator)
        assert isinstance(stream, serve_handle.DeploymentResponseGenerator)
        response.result(timeout_s=20)
        list(stream)


def test_environment_makes_grpc_the_default_and_options_override_it(serve_instance, run_script):
    env = {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1", **on_shared_ray()}
    run_script("use_grpc_by_default", env=env)


def test_plain_deployment_is_called_over_serves_transport_with_one_log_line(plain, serve_log):
    handle = serve_grpc.get_app_handle("plain").options(_by_reference=False)
    # The first calls are made before the replica set is known to this handle's router.
    early = [handle.remote(i) for i in range(3)]
    assert [response.result(timeout_s=20) for response in early] == [0, 1, 2]
    assert [handle.remote(i).result(timeout_s=20) for i in range(3)] == [0, 1, 2]
    assert list(handle.options(method_name="items", stream=True).remote(3)) == [0, 1, 2]
    assert len(serve_log.fallbacks) == 1
    assert "no serve_grpc endpoint" in serve_log.fallbacks[0]
    serve_log.lines.clear()
    again = serve_grpc.wrap(serve.get_app_handle("plain")).options(_by_reference=False)
    assert again.remote(1).result(timeout_s=20) == 1
    assert len(serve_log.fallbacks) == 1


def test_early_calls_to_a_plain_deployment_keep_errors_streams_and_cancels(plain):
    def fresh():
        return serve_grpc.get_app_handle("plain").options(_by_reference=False)

    with pytest.raises(ValueError, match="a bad value"):
        fresh().fail.remote("ValueError").result(timeout_s=20)
    assert list(fresh().options(method_name="items", stream=True).remote(4)) == [0, 1, 2, 3]
    from ray.serve.exceptions import RequestCancelledError

    held = fresh().hold.remote()
    held.cancel()
    with pytest.raises(RequestCancelledError):
        held.result(timeout_s=20)


def test_local_testing_mode_answers_without_a_cluster_and_says_so(serve_log):
    app = serve_grpc.deployment(Plain).bind()
    handle = serve_grpc.run(app, name="local", _local_testing_mode=True)
    logging.getLogger("ray.serve").addHandler(serve_log)  # Serve sets its logger up anew
    by_value = handle.options(_by_reference=False)
    assert handle.remote(1).result() == 1
    assert [by_value.remote(i).result() for i in range(3)] == [0, 1, 2]
    assert list(by_value.options(method_name="items", stream=True).remote(2)) == [0, 1]
    assert [line for line in serve_log.fallbacks if "local testing mode" in line] != []
