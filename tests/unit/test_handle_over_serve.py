"""Calls of a handle of ours that go over Serve's own transport, and what is said of it once."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve import handle as serve_handle

from serve_grpc import handle as handle_module
from serve_grpc.caller.feed import Feed
from serve_grpc.caller.registry import transport_of
from serve_grpc.config import LOGGER_NAME
from serve_grpc.handle import UNREACHABLE, DeploymentHandle


class Responded:
    """A response of Serve's, by its constructor."""

    def __init__(self, future: Any, metadata: Any, **_: Any) -> None:
        self.future, self.metadata = future, metadata


class Streamed(Responded):
    """The same for a stream."""


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> DeploymentHandle[Any]:
    """One whose calls over Serve's transport get a response of their arguments."""

    def remote(self: Any, args: Any, kwargs: Any) -> Any:
        return (args, kwargs), SimpleNamespace(is_streaming=self.handle_options.stream)

    monkeypatch.setattr(serve_handle.DeploymentHandle, "_remote", remote)
    monkeypatch.setattr(DeploymentHandle, "_init", lambda self: None)
    monkeypatch.setattr(DeploymentHandle, "_is_router_running_in_separate_loop", lambda self: True)
    monkeypatch.setattr(handle_module, "DeploymentResponse", Responded)
    monkeypatch.setattr(handle_module, "DeploymentResponseGenerator", Streamed)
    return DeploymentHandle("Echo", "app")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The texts of our warnings."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(LOGGER_NAME) and record.levelno == logging.WARNING
    ]


def test_by_reference_serve_makes_the_call(
    handle: DeploymentHandle[Any], caplog: pytest.LogCaptureFixture
) -> None:
    by_reference: Any = handle.options(_by_reference=True)
    response: Any = by_reference.remote(1, key=2)
    assert type(response) is Responded
    assert response.future == ((1,), {"key": 2})
    assert type(by_reference.options(stream=True).remote()) is Streamed
    assert said(caplog) == []


def test_options_without_effect_by_reference_are_said_once_for_all_copies(
    handle: DeploymentHandle[Any], caplog: pytest.LogCaptureFixture
) -> None:
    for options in ({"timeout_s": 1.0}, {"idempotent": True}, {"timeout_s": 2.0}):
        handle.options(_by_reference=True, **options).remote()
    (text,) = said(caplog)
    assert text == (
        "Handle of deployment 'Echo': `timeout_s` and `idempotent` have no effect by reference."
    )


def test_where_no_replica_can_be_reached_serve_makes_the_call_and_it_is_said_once(
    handle: DeploymentHandle[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(handle_module, "inside_ray_client_context", lambda: True)
    by_value: Any = handle.options(_by_reference=False)
    for number in range(3):
        response: Any = by_value.remote(number)
        assert response.future == ((number,), {})
    (text,) = said(caplog)
    assert text.endswith(f"calls by value use Ray Serve's own transport, because it {UNREACHABLE}.")


@pytest.mark.parametrize(
    ("router", "is_by_reference", "reason", "transport"),
    [
        (None, True, None, "by reference"),
        (None, True, "has no endpoint", "by reference"),
        (None, False, None, "undecided"),
        (None, False, "has no endpoint", "Serve's gRPC"),
        (SimpleNamespace(feed=Feed(is_ready=False)), False, None, "undecided"),
        (SimpleNamespace(feed=Feed(is_ready=True)), False, None, "serve_grpc"),
        (SimpleNamespace(feed=Feed(is_ready=True), is_used=True), True, None, "serve_grpc"),
        (SimpleNamespace(feed=Feed(is_ready=True), is_used=False), True, None, "by reference"),
        (SimpleNamespace(feed=Feed(is_ready=True)), False, "has no endpoint", "Serve's gRPC"),
    ],
)
def test_the_word_for_what_calls_travel_over(
    router: Any, is_by_reference: bool, reason: str | None, transport: str
) -> None:
    assert transport_of(router, is_by_reference, reason) == transport


def test_a_handle_by_value_has_a_router_of_ours_as_soon_as_serves_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not from the first call on: Serve's would have looked up every replica by then."""
    made: list[Any] = []

    def router_of(serve_router: Any, handle_counter: Any) -> Any:
        made.append(serve_router)
        return SimpleNamespace()

    monkeypatch.setattr(handle_module, "router_of", router_of)
    handle: DeploymentHandle[Any] = DeploymentHandle("Echo", "app", _router="Serve's")
    handle.options(_by_reference=True)
    assert made == []
    by_value = handle.options(_by_reference=False)
    by_value.options(method_name="other")
    assert made == ["Serve's"]
