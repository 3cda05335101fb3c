"""Options of a handle are checked when they are given, before any call is made."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from serve_grpc.handle import DeploymentHandle, wrap
from serve_grpc.handle_options import MAX_NAME_CHARACTERS


@pytest.fixture
def handle() -> DeploymentHandle[Any]:
    """A handle that has not looked for its deployment yet."""
    return DeploymentHandle("deployment", "app")


@pytest.mark.parametrize(
    "options",
    [
        {"method_name": 1},
        {"multiplexed_model_id": b"model"},
        {"session_id": None},
        {"stream": 1},
        {"_prefer_local_routing": "yes"},
        {"_by_reference": 0},
        {"idempotent": "no"},
        {"request_serialization": 5},
        {"timeout_s": "5"},
        {"timeout_s": True},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused(handle: DeploymentHandle, options: dict) -> None:
    with pytest.raises(TypeError):
        handle.options(**options)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_timeout_that_cannot_be_kept_is_refused(
    handle: DeploymentHandle, timeout_s: float
) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        handle.options(timeout_s=timeout_s)


@pytest.mark.parametrize("option", ["request_serialization", "response_serialization"])
def test_an_unknown_serializer_is_refused_with_the_list_of_names(
    handle: DeploymentHandle, option: str
) -> None:
    with pytest.raises(ValueError, match=r"yaml.*cloudpickle.*msgpack.*noop.*orjson.*pickle"):
        handle.options(**{option: "yaml"})


@pytest.mark.parametrize("option", ["method_name", "multiplexed_model_id", "session_id"])
def test_text_that_no_frame_can_carry_is_refused(handle: DeploymentHandle, option: str) -> None:
    with pytest.raises(ValueError, match=option):
        handle.options(**{option: "x" * (MAX_NAME_CHARACTERS + 1)})
    # Half of a surrogate pair, as `json.loads` makes it of the text of a stranger.
    with pytest.raises(ValueError, match=option):
        handle.options(**{option: "\ud800"})


def test_a_pickled_handle_keeps_its_options() -> None:
    handle = DeploymentHandle("deployment", "app", timeout_s=2.5, idempotent=True)
    twin = pickle.loads(pickle.dumps(handle))
    assert type(twin) is DeploymentHandle
    assert (twin._timeout_s, twin._idempotent) == (2.5, True)
    assert (twin.deployment_name, twin.app_name) == ("deployment", "app")


@pytest.mark.parametrize("other", [None, "handle", object()])
def test_only_a_handle_can_be_wrapped(handle: DeploymentHandle, other: object) -> None:
    assert wrap(handle) is handle
    with pytest.raises(TypeError, match=type(other).__name__):
        wrap(other)


class ServesRouter:
    """Stands for the one of a handle that has found its deployment."""


def test_a_handle_shows_what_it_calls_and_how() -> None:
    handle: DeploymentHandle[Any] = DeploymentHandle("deployment", "app", _router=ServesRouter())
    assert repr(handle.options(_by_reference=True)) == (
        "DeploymentHandle(deployment='deployment', app='app', transport='by reference')"
    )
    assert repr(
        handle.options(
            method_name="work",
            stream=True,
            multiplexed_model_id="m",
            response_serialization="msgpack",
            timeout_s=2,
            idempotent=True,
            _by_reference=False,
        )
    ) == (
        "DeploymentHandle(deployment='deployment', app='app', method_name='work', "
        "multiplexed_model_id='m', stream=True, response_serialization='msgpack', timeout_s=2, "
        "idempotent=True, transport='undecided')"
    )
