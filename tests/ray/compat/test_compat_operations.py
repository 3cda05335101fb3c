"""Deploying, changing and deleting applications, under traffic.

`serve deploy` sends its file to the Ray dashboard, which hands it to the controller as
`client.deploy_apps` does; so does `serve run`, which needs no dashboard and is what runs here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

import serve_grpc
from tests.ray.apps.gated import Board, Gated
from tests.ray.apps.operations import OPTIONS, Back
from tests.ray.compat.behaviours import TRANSPORTS, behaviour, over
from tests.ray.scripts import ROOT
from tests.ray.traffic import Traffic, traffic
from tests.ray.waiting import eventually

pytestmark = pytest.mark.timeout(400)

CALL_S = 30.0


# ------------------------------------------------------------ config files


def serve_cli(*args: str) -> None:
    """Run Serve's command line."""
    command = [sys.executable, "-m", "ray.serve.scripts", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def back_in(config: Any) -> Any:
    """What the file says of "file-1"'s `Back`."""
    deployments = config["applications"][0]["deployments"]
    return next(deployment for deployment in deployments if deployment["name"] == "Back")


def is_running(name: str) -> bool:
    application = serve.status().applications.get(name)
    return application is not None and application.status == "RUNNING"


@pytest.fixture(scope="module")
def config(serve_instance: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two applications from one file, both running: "file-1" as built, "file-2" with arguments."""
    path = tmp_path_factory.mktemp("config") / "serve.yaml"
    serve_cli("build", "tests.ray.apps.operations:app", "-o", str(path))
    config = yaml.safe_load(path.read_text())
    (first,) = config["applications"]
    first.update(name="file-1", route_prefix="/file-1")
    back_in(config)["user_config"] = {"word": "old"}
    second = {
        "name": "file-2",
        "route_prefix": "/file-2",
        "import_path": "tests.ray.apps.operations:built",
        "args": {"version": "2"},
    }
    config["applications"].append(second)
    path.write_text(yaml.safe_dump(config))
    address = ray.get_runtime_context().gcs_address
    serve_cli("run", "--non-blocking", "--address", address, str(path))
    eventually(lambda: is_running("file-1") and is_running("file-2"), timeout_s=90)
    yield config
    for name in ("file-1", "file-2"):
        serve.delete(name, _blocking=False)


class Changed(NamedTuple):
    """What a change to the config file did, by transport."""

    answers: dict[str, Traffic]
    pids: set[int]


def back_of(app: str) -> serve_grpc.DeploymentHandle[Any]:
    return serve_grpc.get_deployment_handle("Back", app)


@pytest.fixture(scope="module")
def reconfigured(config: Any) -> Changed:
    """Another `user_config`, under traffic."""
    handles = {name: over(name, back_of("file-1")) for name in TRANSPORTS}
    with traffic({name: lambda h=h: h.remote() for name, h in handles.items()}) as seen:
        back_in(config)["user_config"] = {"word": "new"}
        serve.context._global_client.deploy_apps(ServeDeploySchema.model_validate(config))
        for name in handles:
            seen[name].wait_for(lambda answer: answer[1] == "new")
    return Changed(seen, {answer[2] for name in handles for answer in seen[name].answers})


@behaviour("Operations", "A config file deploys: `serve build`, then `serve run`")
def test_a_config_file_deploys(config, transport):
    front = serve_grpc.get_app_handle("file-1")
    version, _, pid = transport.over(back_of("file-1")).remote().result(timeout_s=CALL_S)
    assert version == "1"
    assert front.ask.remote(transport.name).result(timeout_s=CALL_S)[2] == pid


@behaviour("Operations", "An application builder gets its arguments from the config file")
def test_a_builder_gets_its_arguments(config, transport):
    handle = transport.over(back_of("file-2"))
    assert handle.remote().result(timeout_s=CALL_S)[0] == "2"


@behaviour("Operations", "Deployments of the same name in two applications are kept apart")
def test_equal_names_are_kept_apart(config, transport):
    seen = []
    for app in ("file-1", "file-2"):
        direct = transport.over(back_of(app)).remote().result(timeout_s=CALL_S)
        front = transport.over(serve_grpc.get_app_handle(app))
        nested = front.ask.remote(transport.name).result(timeout_s=CALL_S)
        assert nested == direct
        seen.append(direct)
    assert [answer[0] for answer in seen] == ["1", "2"]
    assert seen[0][2] != seen[1][2]


@behaviour(
    "Operations",
    "A new `user_config` reaches the running replica, which does not restart; no call fails",
)
def test_user_config_changes_in_place(reconfigured, transport):
    seen = reconfigured.answers[transport.name]
    assert seen.errors == []
    assert seen.answers[0][1] == "old"
    assert seen.answers[-1][1] == "new"
    assert len(reconfigured.pids) == 1


@pytest.fixture(scope="module")
def narrowed(config: Any, reconfigured: Changed) -> dict[str, tuple[int, int]]:
    """By transport, with one request at once allowed: calls that ran at once, the process."""
    back_in(config)["max_ongoing_requests"] = 1
    serve.context._global_client.deploy_apps(ServeDeploySchema.model_validate(config))
    handles = {name: over(name, back_of("file-1")) for name in TRANSPORTS}

    def most_at_once(name: str) -> int:
        calls = [handles[name].company.remote() for _ in range(4)]
        return max(call.result(timeout_s=CALL_S) for call in calls)

    eventually(lambda: most_at_once(TRANSPORTS[0]) == 1, timeout_s=60)
    return {
        name: (most_at_once(name), handles[name].remote().result(timeout_s=CALL_S)[2])
        for name in TRANSPORTS
    }


@behaviour("Operations", "A new `max_ongoing_requests` takes effect without a restart")
def test_max_ongoing_requests_changes_in_place(reconfigured, narrowed, transport):
    most, pid = narrowed[transport.name]
    assert most == 1
    assert {pid} == reconfigured.pids


# ------------------------------------------------------------ serve.run and serve.delete


@pytest.fixture(scope="module")
def redeployed(deploy: Any) -> dict[str, Traffic]:
    """A second version over the first one, two replicas each, under traffic."""
    enabled = serve_grpc.deployment(**OPTIONS, num_replicas=2)(Back)
    handle = deploy(enabled.bind("1"), "rolling")
    handles = {name: over(name, handle) for name in TRANSPORTS}
    with traffic({name: lambda h=h: h.remote() for name, h in handles.items()}) as seen:
        deploy(enabled.bind("2"), "rolling")
        for name in handles:
            seen[name].wait_for(lambda answer: answer[0] == "2")
    return seen


@behaviour("Operations", "`serve.run` over a running application: a rolling update, no call fails")
def test_no_call_fails_while_replicas_are_replaced(redeployed, transport):
    seen = redeployed[transport.name]
    assert seen.errors == []
    assert seen.answers[0][0] == "1"
    assert seen.answers[-1][0] == "2"


@pytest.fixture(scope="module")
def deleted(deploy: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What became of three calls over each transport: of one that ran during the deletion, of one
    while the application was away, and of one when it was back."""
    options = {**OPTIONS, "graceful_shutdown_timeout_s": 60}
    app = serve_grpc.deployment(**options)(Gated).bind()
    handle = deploy(app, "deleted")
    handles = {name: over(name, handle) for name in TRANSPORTS}
    board = Board(Path(tmp_path_factory.mktemp("board")))
    running = {name: handles[name].remote(board.path, "running") for name in handles}
    eventually(lambda: board.count("start") == len(handles), timeout_s=60)
    serve.delete("deleted", _blocking=False)
    eventually(lambda: serve.status().applications["deleted"].status == "DELETING", timeout_s=60)
    board.release()
    ended = {name: call.result(timeout_s=60) for name, call in running.items()}
    eventually(lambda: "deleted" not in serve.status().applications, timeout_s=60)
    away = {name: refusal(handles[name]) for name in handles}
    deploy(app, "deleted")
    back = {name: handles[name].pid.remote().result(timeout_s=60) for name in handles}
    return {name: [ended[name], away[name], back[name]] for name in handles}


def refusal(handle: Any) -> str:
    """The kind of error that a call ends with, once the handle has the news."""

    def refused() -> str:
        try:
            handle.pid.remote().result(timeout_s=5)
        except Exception as error:
            return "" if isinstance(error, TimeoutError) else type(error).__name__
        return ""

    return eventually(refused, timeout_s=60)


@behaviour("Operations", "`serve.delete` lets running calls end")
def test_deletion_waits_for_running_calls(deleted, transport):
    assert deleted[transport.name][0] == "running"


@behaviour(
    "Operations",
    "A handle to a deleted application raises `DeploymentUnavailableError`, and works again when "
    "the application is back",
)
def test_a_handle_outlives_its_application(deleted, transport):
    _, away, pid = deleted[transport.name]
    assert away == "DeploymentUnavailableError"
    assert pid > 0
