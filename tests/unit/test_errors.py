"""The tree of errors: its shape, what each one says, and that all of it survives a pickle."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException, ReplicaUnavailableError

from serve_grpc import errors


class Cause(Exception):
    """Equal to a copy of it, which exceptions are not."""

    __hash__ = Exception.__hash__

    def __eq__(self, other: object) -> bool:
        return type(other) is Cause and self.args == other.args


PLACE = {"request_id": "req-1", "replica_id": "rep-1", "may_have_executed": True}
SAMPLES = [
    errors.ServeGrpcError("something", **PLACE),
    errors.ObjectRefNotSupportedError("_to_object_ref", request_id="req-1"),
    errors.MessageTooLargeError(11, 10, "response", **PLACE),
    errors.SerializationError("does not fit", serializer="orjson", direction="request", **PLACE),
    errors.ReplicaDiedError("gone", actor_id="abc", **PLACE),
    errors.ReplicaUnavailableError("not there", **PLACE),
    errors.DeadlineExceededError("too late", **PLACE),
    errors.ReplicaError("broken", **PLACE),
    errors.RequestStreamError(
        "no more", cause=Cause("why"), request_id="req-1", replica_id="rep-1"
    ),
]
every_error = pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)


def test_the_samples_here_are_the_whole_tree() -> None:
    assert {type(error).__name__ for error in SAMPLES} == set(errors.__all__)


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (errors.ServeGrpcError, RayServeException),
        (errors.ObjectRefNotSupportedError, RuntimeError),
        (errors.MessageTooLargeError, ValueError),
        (errors.SerializationError, TypeError),
        (errors.ReplicaDiedError, RayActorError),
        (errors.ReplicaUnavailableError, ReplicaUnavailableError),
        (errors.DeadlineExceededError, TimeoutError),
    ],
)
def test_an_error_is_also_what_callers_already_catch(
    kind: type[Exception], also: type[Exception]
) -> None:
    assert issubclass(kind, also)
    assert issubclass(kind, errors.ServeGrpcError)


@every_error
def test_the_module_docstring_shows_every_class(error: errors.ServeGrpcError) -> None:
    assert type(error).__name__ in (errors.__doc__ or "")


@every_error
@pytest.mark.parametrize(
    "copied",
    [
        lambda error: pickle.loads(pickle.dumps(error)),
        lambda error: pickle.loads(cloudpickle.dumps(error)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["pickle", "cloudpickle", "copy", "deepcopy"],
)
def test_a_copy_has_type_text_and_every_field(
    error: errors.ServeGrpcError, copied: Callable[[Any], Any]
) -> None:
    twin = copied(error)
    assert type(twin) is type(error)
    assert vars(twin) == vars(error)
    assert (str(twin), twin.args) == (str(error), error.args)
    assert str(twin) == error.message != ""


@every_error
def test_place_fields_are_there_on_every_class(error: errors.ServeGrpcError) -> None:
    assert error.request_id == "req-1"
    assert error.replica_id in ("rep-1", "")
    assert error.may_have_executed is True


def test_place_fields_default_to_unknown_and_not_executed() -> None:
    error = errors.ServeGrpcError("text")
    assert (error.request_id, error.replica_id, error.may_have_executed) == ("", "", False)


def test_a_lost_replica_may_have_executed_unless_told_otherwise() -> None:
    assert errors.ReplicaDiedError("gone").may_have_executed
    assert not errors.ReplicaDiedError("gone", may_have_executed=False).may_have_executed


def test_a_lost_replica_answers_what_ray_asks_of_an_actor_error() -> None:
    died = errors.ReplicaDiedError("gone", actor_id="abc")
    assert (died.actor_id, died.error_msg) == ("abc", "gone")
    assert (died.preempted, died.actor_init_failed) == (False, False)


@pytest.mark.parametrize(
    "method",
    ["_to_object_ref", "_to_object_ref_sync", "_to_object_ref_gen", "_to_object_ref_gen_sync"],
)
def test_an_object_ref_that_cannot_be_says_how_to_get_one(method: str) -> None:
    text = str(errors.ObjectRefNotSupportedError(method))
    assert f"`{method}`" in text
    assert "_by_reference=True" in text
    assert "ray.put" in text


@pytest.mark.parametrize("direction", ["request", "response"])
def test_too_large_names_both_sizes_the_side_and_the_ways_out(direction: str) -> None:
    error = errors.MessageTooLargeError(5_000_000, 4_194_304, direction)
    assert (error.size, error.limit, error.direction) == (5_000_000, 4_194_304, direction)
    for part in (
        "5000000",
        "4194304",
        direction,
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH",
        "_by_reference=True",
    ):
        assert part in str(error)


def test_a_note_and_a_cause_do_not_hinder_a_pickle() -> None:
    error = errors.DeadlineExceededError("too late")
    error.__cause__ = RuntimeError("why")
    error.extra = {"seen": 1}  # type: ignore[attr-defined]
    twin = pickle.loads(pickle.dumps(error))
    assert twin.extra == {"seen": 1}
