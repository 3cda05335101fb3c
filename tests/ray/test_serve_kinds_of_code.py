"""Functions, classes, generators, threads, FastAPI, composition: whatever Serve can deploy."""

from __future__ import annotations

import httpx
import pytest
from ray import serve
from ray.serve.schema import ServeDeploySchema

import serve_grpc
from tests.ray.apps.kinds import Api, diamond, enabled_diamond, healthy, in_loop_app, kinds_app
from tests.ray.apps.plain import Plain
from tests.ray.listing import infos_of
from tests.ray.needs import needs_ray
from tests.ray.waiting import eventually

BOTH = pytest.mark.parametrize("by_reference", [False, True], ids=["by_value", "by_reference"])
IN_THREADS = needs_ray("2.60", "Serve runs `def` code in its thread pool by default")


@pytest.fixture(scope="module")
def root(deploy):
    return deploy(kinds_app(), "kinds")


@pytest.fixture(scope="module")
def enabled(deploy):
    return deploy(enabled_diamond, "diamond")


def of(name, by_reference, app="kinds"):
    handle = serve_grpc.get_deployment_handle(name, app)
    return handle.options(_by_reference=by_reference)


@BOTH
def test_async_function(root, by_reference):
    assert of("async_function", by_reference).remote(1).result(timeout_s=20) == ["async", 1]


@IN_THREADS
@BOTH
def test_sync_function_runs_outside_the_event_loop(root, by_reference):
    handle = of("sync_function", by_reference)
    assert handle.remote(3).result(timeout_s=20) == ["sync", 6, False]
    assert handle.remote(3, scale=3).result(timeout_s=20) == ["sync", 9, False]


@BOTH
def test_async_generator_function(root, by_reference):
    stream = of("async_generator", by_reference).options(stream=True).remote(4)
    assert list(stream) == [0, 1, 2, 3]


@IN_THREADS
@BOTH
def test_sync_methods_run_in_the_thread_pool(root, by_reference):
    value, in_loop, thread = of("Sync", by_reference).remote("v").result(timeout_s=20)
    assert (value, in_loop) == ("v", False)
    assert thread != "MainThread"


@IN_THREADS
@BOTH
def test_sync_generator_runs_in_the_thread_pool(root, by_reference):
    stream = of("Sync", by_reference).options(method_name="items", stream=True).remote(2)
    assert list(stream) == [[0, False], [1, False]]


@BOTH
def test_sync_methods_run_on_the_loop_if_serve_is_told_so(deploy, by_reference):
    if "in-loop" not in serve.status().applications:
        deploy(in_loop_app(), "in-loop")
    handle = of("Sync", by_reference, "in-loop")
    assert handle.remote("v").result(timeout_s=20)[:2] == ["v", True]
    stream = handle.options(method_name="items", stream=True).remote(2)
    assert list(stream) == [[0, True], [1, True]]


@BOTH
def test_methods_of_every_kind(root, by_reference):
    handle = of("Sync", by_reference)
    assert handle.other.remote(named=5).result(timeout_s=20) == 5
    assert handle.static.remote(5).result(timeout_s=20) == 6
    assert handle.of_class.remote(5).result(timeout_s=20) == "Sync 5"


def test_class_with_async_constructor(root):
    assert of("AsyncInit", False).remote().result(timeout_s=20) == 7


@BOTH
def test_a_class_that_cannot_be_extended_sees_nothing_of_ours(root, by_reference):
    handle = of("Sealed", by_reference)
    assert handle.remote().result(timeout_s=20) == [True, ["other"]]
    with pytest.raises(Exception, match=r"Available methods: \['other'\]"):
        handle.missing.remote().result(timeout_s=20)


def test_a_deployment_under_both_decorators_is_one_of_ours(root):
    response = of("Twice", False).remote()
    assert response.result(timeout_s=20) == 2
    assert not response.by_reference


def test_metadata_of_the_user_and_ours_are_both_published(root):
    handle = of("AsyncInit", False)
    handle.remote().result(timeout_s=20)
    (metadata,) = [info.replica_metadata for info in infos_of(handle)]
    assert metadata["mine"] == 7
    host, port = metadata["serve_grpc"]["address"].rsplit(":", 1)
    assert host
    assert 0 < int(port) < 65536


def test_handles_nested_in_constructor_arguments_are_ours(root):
    assert root.kinds.remote().result(timeout_s=20) == {
        "plain": ["serve_grpc.handle", "async_function"],
        "listed": ["serve_grpc.handle", "sync_function"],
        "mapped": ["serve_grpc.handle", "AsyncInit"],
        "deep": ["serve_grpc.handle", "Sync"],
    }


@BOTH
def test_nested_handles_call(root, by_reference):
    assert root.call.remote("plain", by_reference, 1).result(timeout_s=20) == ["async", 1]
    assert root.call.remote("mapped", by_reference).result(timeout_s=20) == 7


def test_fastapi_class_is_called_by_handle_and_over_http(deploy):
    handle = deploy(Api.bind("hello"), "api", route_prefix="/api")
    assert handle.direct.remote("you").result(timeout_s=20) == "hello you directly"
    assert handle.greet.remote("you").result(timeout_s=20) == {"text": "hello you"}
    port = serve.context._get_global_client().http_config.port
    answer = eventually(
        lambda: (r := httpx.get(f"http://127.0.0.1:{port}/api/greet/me")).status_code == 200 and r
    )
    assert answer.json() == {"text": "hello me"}


def test_function_without_parameters_behind_wraps_answers_over_http(deploy):
    handle = deploy(healthy.bind(), "healthy", route_prefix="/healthy")
    assert handle.remote().result(timeout_s=20) == "ok"
    port = serve.context._get_global_client().http_config.port
    answer = eventually(
        lambda: (r := httpx.get(f"http://127.0.0.1:{port}/healthy")).status_code != 404 and r
    )
    assert (answer.status_code, answer.text) == (200, "ok")


def test_deployment_options_still_apply(deploy):
    enabled = serve_grpc.deployment(Plain).options(
        name="Renamed", num_replicas=2, ray_actor_options={"num_cpus": 0.01}
    )
    assert isinstance(enabled, serve.Deployment)
    handle = deploy(enabled.bind(), "options")
    assert handle.remote("x").result(timeout_s=20) == "x"
    assert not handle.remote("x").by_reference
    state = serve.status().applications["options"].deployments["Renamed"]
    assert state.replica_states == {"RUNNING": 2}


def test_enabled_diamond_speaks_grpc_inside(enabled):
    assert enabled.remote(1).result(timeout_s=20) == 22
    assert enabled.handle_kinds.remote().result(timeout_s=20) == ["serve_grpc.handle"] * 2
    assert set(serve.status().applications["diamond"].deployments) == {
        "Top",
        "Left",
        "Side",
        "Bottom",
    }


def test_enable_leaves_the_given_application_alone():
    assert enabled_diamond is not diamond
    assert not hasattr(diamond._bound_deployment, "serializers")
    with pytest.raises(TypeError, match="Application"):
        serve_grpc.enable("not an application")


def test_handles_of_a_running_app(enabled):
    app = serve_grpc.get_app_handle("diamond").options(_by_reference=False)
    one = serve_grpc.get_deployment_handle("Bottom", "diamond").options(_by_reference=False)
    wrapped = serve_grpc.wrap(serve.get_app_handle("diamond")).options(_by_reference=False)
    assert isinstance(wrapped, serve_grpc.DeploymentHandle)
    responses = [app.remote(1), one.remote(1), wrapped.remote(1)]
    assert [r.result(timeout_s=20) for r in responses] == [22, 2, 22]
    assert not any(r.by_reference for r in responses)
    assert serve_grpc.wrap(wrapped) is wrapped
    with pytest.raises(TypeError, match="DeploymentHandle"):
        serve_grpc.wrap("no handle")


@pytest.mark.timeout(200)
def test_config_file_deploys_an_enabled_app(serve_instance):
    config = ServeDeploySchema.model_validate(
        {
            "applications": [
                {
                    "name": "from-config",
                    "route_prefix": None,
                    "import_path": "tests.ray.apps.kinds:enabled_diamond",
                    "deployments": [{"name": "Bottom", "num_replicas": 2}],
                }
            ]
        }
    )
    serve.context._get_global_client().deploy_apps(config)
    apps = serve.status

    def is_running():
        app = apps().applications.get("from-config")
        assert app is None or app.status != "DEPLOY_FAILED", app.message
        return app is not None and app.status == "RUNNING"

    try:
        eventually(is_running, timeout_s=150)
        handle = serve_grpc.get_app_handle("from-config").options(_by_reference=False)
        response = handle.remote(2)
        assert not response.by_reference
        assert response.result(timeout_s=20) == 33
        bottom = apps().applications["from-config"].deployments["Bottom"]
        assert bottom.replica_states == {"RUNNING": 2}
    finally:
        serve.delete("from-config", _blocking=False)
