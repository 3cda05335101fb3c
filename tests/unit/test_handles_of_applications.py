"""`run`, `get_app_handle`, `get_deployment_handle`: a handle of ours beside each of Serve's."""

from __future__ import annotations

from typing import Any

import pytest
from ray import serve
from ray.serve import handle as serve_handle
from ray.serve._private.handle_options import DynamicHandleOptions

import serve_grpc
from serve_grpc.handle import DeploymentHandle


@pytest.fixture(autouse=True)
def serves(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Serve's own handles, by application; and what Serve was asked for."""
    found: dict[str, Any] = {"asked": []}

    def handle(kind: str, name: str, /, *args: Any, **options: Any) -> Any:
        found["asked"].append((kind, name, *args, options))
        return found.setdefault(name, serve_handle.DeploymentHandle(f"of {name}", name))

    def ask(kind: str) -> Any:
        return lambda name, /, *args, **options: handle(kind, name, *args, **options)

    monkeypatch.setattr(serve, "get_app_handle", ask("app"))
    monkeypatch.setattr(serve, "get_deployment_handle", ask("deployment"))
    monkeypatch.setattr(serve, "run", ask("run"))
    return found


def test_one_of_serves_has_one_of_ours(serves: dict[str, Any]) -> None:
    one = serve_grpc.get_app_handle("app")
    assert isinstance(one, DeploymentHandle)
    assert (one.deployment_name, one.app_name) == ("of app", "app")
    assert serve_grpc.get_app_handle("app") is one
    assert serve_grpc.run("app") is one  # type: ignore[arg-type]
    assert serve_grpc.get_app_handle("other") is not one


def test_serve_is_asked_with_all_options(serves: dict[str, Any]) -> None:
    serve_grpc.run("app", name="name", route_prefix="/x")  # type: ignore[arg-type]
    serve_grpc.get_deployment_handle("Echo", "app", _check_exists=False)
    assert serves["asked"] == [
        ("run", "app", {"name": "name", "route_prefix": "/x"}),
        ("deployment", "Echo", "app", {"_check_exists": False}),
    ]


def test_another_handle_of_serves_is_another_of_ours(serves: dict[str, Any]) -> None:
    one = serve_grpc.get_app_handle("app")
    del serves["app"]  # it fell out of Serve's cache
    assert serve_grpc.get_app_handle("app") is not one


def test_ours_has_no_router_of_its_own() -> None:
    assert not serve_grpc.get_app_handle("app")._family.owns_router


@pytest.mark.parametrize("what", ["owns_router", "is_shut_down"])
def test_one_that_is_of_no_use_to_others_is_replaced(what: str) -> None:
    one = serve_grpc.get_app_handle("app")
    setattr(one._family, what, True)
    two = serve_grpc.get_app_handle("app")
    assert two is not one
    assert serve_grpc.get_app_handle("app") is two


def test_wrapped_handles_keep_options_and_are_wrapped_once() -> None:
    options = DynamicHandleOptions(method_name="echo", stream=True, multiplexed_model_id="model")
    of_serves = serve_handle.DeploymentHandle("Echo", "app", handle_options=options)
    wrapped = serve_grpc.wrap(of_serves)
    assert isinstance(wrapped, DeploymentHandle)
    assert wrapped.handle_options == options
    assert wrapped.handle_id == of_serves.handle_id
    assert serve_grpc.wrap(wrapped) is wrapped
    with pytest.raises(TypeError, match="expected a Ray Serve DeploymentHandle, got str"):
        serve_grpc.wrap("app")  # type: ignore[arg-type]
