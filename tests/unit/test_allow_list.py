"""Which serializers a call may use: the lists themselves, and where they are asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray import serve

import serve_grpc
from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.replica_facts import Endpoint
from serve_grpc.allow_list import (
    allow_list,
    check_call,
    check_process_list,
    narrowed,
    takes_pickle,
)
from serve_grpc.caller.replica_set import ReplicaSet
from serve_grpc.caller.router import Router
from serve_grpc.config import Settings
from serve_grpc.errors import SerializationError
from serve_grpc.replica.executor import Executor
from serve_grpc.routing.peer import ReplicaFacts
from serve_grpc.serialization import get_serializer, register_serializer
from tests.unit.test_executor import OneMethod, Outcomes, invocation, settle

PLAIN = frozenset({"msgpack", "orjson"})


# ------------------------------------------------------------ lists


def test_names_become_a_frozen_set_in_lower_case() -> None:
    assert allow_list(("MsgPack", "orjson", "msgpack")) == PLAIN
    assert allow_list(name for name in ["msgpack", "orjson"]) == PLAIN
    assert allow_list(None) is None


@pytest.mark.parametrize("names", ["msgpack", b"msgpack", 5, ["msgpack", 5]], ids=repr)
def test_what_is_no_collection_of_names_is_refused(names: Any) -> None:
    with pytest.raises(TypeError):
        allow_list(names)


@pytest.mark.parametrize("names", [(), ["yaml"], ["msgpack", ""]], ids=repr)
def test_an_empty_list_and_unknown_names_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="serializer"):
        allow_list(names)


def test_a_registered_name_is_known() -> None:
    register_serializer("Mine", bytes, bytes)
    assert allow_list(["mine"]) == {"mine"}


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (None, None, None),
        (PLAIN, None, PLAIN),
        (None, PLAIN, PLAIN),
        (PLAIN, frozenset({"orjson", "pickle"}), frozenset({"orjson"})),
        (PLAIN, frozenset({"pickle"}), frozenset()),
    ],
)
def test_two_lists_allow_what_is_in_both(first: Any, second: Any, both: Any) -> None:
    assert narrowed(first, second) == both


@pytest.mark.parametrize(
    ("names", "takes"),
    [
        (None, True),
        (["pickle"], True),
        (["cloudpickle", "noop"], True),
        (PLAIN, False),
        ([], False),
    ],
)
def test_pickle_is_taken_where_a_pickle_is_listed(names: Any, takes: bool) -> None:
    assert takes_pickle(None if names is None else frozenset(names)) is takes


def test_names_of_the_process_that_nobody_knows_are_refused() -> None:
    check_process_list(None)
    check_process_list(PLAIN)
    with pytest.raises(
        ValueError, match=r"SERVE_GRPC_SERIALIZERS names 'msgpak', 'yaml'.*'orjson'"
    ):
        check_process_list(frozenset({"msgpack", "msgpak", "yaml"}))


@pytest.mark.parametrize(
    ("request_", "response", "direction", "name"),
    [
        ("cloudpickle", "msgpack", "request", "cloudpickle"),
        ("msgpack", "Pickle", "response", "Pickle"),
        ("noop", "noop", "request", "noop"),
    ],
)
def test_a_refusal_names_the_list_the_serializer_and_the_way_out(
    request_: str, response: str, direction: str, name: str
) -> None:
    with pytest.raises(SerializationError) as raised:
        check_call(request_, response, process=None, deployment=PLAIN, name="Echo")
    error = raised.value
    assert (error.direction, error.serializer, error.may_have_executed) == (direction, name, False)
    parts = ("deployment 'Echo'", "'msgpack', 'orjson'", repr(name), f"{direction}_serialization=")
    for part in parts:
        assert part in str(error)


def test_the_process_is_named_where_it_is_the_process_that_refuses() -> None:
    with pytest.raises(SerializationError, match=r"this process .SERVE_GRPC_SERIALIZERS. takes"):
        check_call("pickle", "pickle", process=PLAIN, deployment=None, name="Echo")
    check_call("ORJSON", "msgpack", process=PLAIN, deployment=PLAIN, name="Echo")


# ------------------------------------------------------------ deployments


def list_of(deployment: Any) -> Any:
    return deployment.serializers


class Service:
    """A class of a user."""


def function() -> None:
    """A function of a user."""


@pytest.mark.parametrize("code", [Service, function])
def test_a_deployment_carries_its_list(code: Any) -> None:
    assert list_of(serve_grpc.deployment(code)) is None
    assert list_of(serve_grpc.deployment(serializers=["msgpack", "orjson"])(code)) == PLAIN
    named = serve_grpc.deployment(serializers=PLAIN, name="other", num_replicas=2)(code)
    assert (list_of(named), named.name, named.num_replicas) == (PLAIN, "other", 2)
    assert list_of(named.options(num_replicas=3)) == PLAIN


@pytest.mark.parametrize(
    ("serializers", "kind"),
    [((), ValueError), (["yaml"], ValueError), ("msgpack", TypeError), ([None], TypeError)],
)
def test_a_wrong_list_fails_where_it_is_written(serializers: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        serve_grpc.deployment(serializers=serializers)
    with pytest.raises(kind):
        serve_grpc.enable(serve.deployment(Service).bind(), serializers=serializers)


@pytest.mark.parametrize("code", [Service, function])
def test_enable_gives_its_list_to_all_and_never_widens_one(code: Any) -> None:
    strict = serve_grpc.deployment(serializers=["orjson", "noop"])(code)
    for deployment, expected in (
        (serve.deployment(code), PLAIN),
        (serve_grpc.deployment(code), PLAIN),
        (strict, {"orjson"}),
    ):
        app = serve_grpc.enable(deployment.bind(), serializers=PLAIN)
        assert list_of(app._bound_deployment) == expected
        assert app._bound_deployment.func_or_class.__name__ == code.__name__
        assert list_of(serve_grpc.enable(app)._bound_deployment) == expected
    assert list_of(strict) == {"orjson", "noop"}


def test_enable_reaches_every_deployment_of_the_graph() -> None:
    inner = serve.deployment(Service).bind()
    app = serve_grpc.enable(serve.deployment(Service).bind([inner]), serializers=PLAIN)
    ((child,),) = app._bound_deployment.init_args
    assert [list_of(a._bound_deployment) for a in (app, child)] == [PLAIN, PLAIN]


def test_lists_that_have_nothing_in_common_are_refused() -> None:
    app = serve_grpc.deployment(serializers=["noop"])(Service).bind()
    with pytest.raises(ValueError, match="Service"):
        serve_grpc.enable(app, serializers=PLAIN)


def test_a_list_is_the_deployments_and_not_its_codes() -> None:
    strict = serve_grpc.deployment(serializers=PLAIN)(Service)
    child = type("Child", (strict.func_or_class,), {})
    for code in (Service, child):
        assert list_of(serve_grpc.deployment(code)) is None
        assert list_of(serve_grpc.deployment(serializers=["msgpack"])(code)) == {"msgpack"}
    assert list_of(serve_grpc.deployment(serializers=["msgpack", "noop"])(strict)) == {"msgpack"}
    assert list_of(strict) == PLAIN


# ------------------------------------------------------------ what callers are told


def test_the_list_is_published_beside_the_address() -> None:
    entry = Endpoint("h:1", "actor", PLAIN).as_metadata()["serve_grpc"]
    assert entry.pop("serializers") == ["msgpack", "orjson"]
    assert entry == {"address": "h:1", "actor_id": "actor", "inputs": True}
    assert "serializers" not in Endpoint("h:1", "actor").as_metadata()["serve_grpc"]


def test_replicas_with_several_lists_take_what_all_of_them_take() -> None:
    def facts(name: str, serializers: Any, address: str = "h:1") -> ReplicaFacts:
        return ReplicaFacts(name, address, serializers=serializers)

    old, new = facts("old", None), facts("new", PLAIN)
    assert ReplicaSet((old,)).serializers is None
    assert ReplicaSet((old, new)).serializers == PLAIN
    assert ReplicaSet((new, facts("x", frozenset({"noop"})))).serializers == frozenset()
    assert ReplicaSet((facts("away", PLAIN, address=""),)).serializers is None


def test_a_caller_whose_process_lists_an_unknown_name_is_told_at_its_first_call() -> None:
    nobody: Any = None
    with pytest.raises(ValueError, match="SERVE_GRPC_SERIALIZERS names 'msgpak'"):
        Router(nobody, Settings(serializers=frozenset({"msgpak"})))


# ------------------------------------------------------------ the replica


@pytest.mark.parametrize("which", ["request_serializer", "response_serializer"])
def test_a_replica_refuses_before_it_reads_anything(which: str) -> None:
    read: list[object] = []
    register_serializer("watched", bytes, read.append)

    async def never() -> None:
        raise AssertionError("it ran")

    async def run() -> Outcomes:
        outcomes = Outcomes()
        replica: Any = OneMethod(never)
        one = invocation(1)
        one.request_serializer = one.response_serializer = "msgpack"
        setattr(one, which, "watched")
        if which == "response_serializer":
            one.request_serializer = "orjson"
            one.payload = b"this is never looked at"
        Executor(replica, outcomes, 10**6, PLAIN).submit([one])
        await settle(outcomes, 1)
        return outcomes

    (outcome,) = asyncio.run(run()).by_id[1]
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.may_have_executed) == (Error.SERIALIZATION, False)
    assert "deployment 'deployment' takes 'msgpack', 'orjson' only" in outcome.error.message
    assert read == []


@pytest.mark.parametrize("serializers", [None, PLAIN])
def test_an_exception_is_pickled_only_where_pickle_is_taken(serializers: Any) -> None:
    async def fail() -> None:
        raise ValueError("mine")

    async def run() -> Outcomes:
        outcomes = Outcomes()
        replica: Any = OneMethod(fail)
        one = invocation(1)
        one.request_serializer = one.response_serializer = "msgpack"
        one.payload = get_serializer("msgpack").dump_request((), {})
        Executor(replica, outcomes, 10**6, serializers).submit([one])
        await settle(outcomes, 1)
        return outcomes

    (outcome,) = asyncio.run(run()).by_id[1]
    assert outcome.error is not None
    assert bool(outcome.error.pickled) is (serializers is None)
    assert (outcome.error.type_name, outcome.error.message) == ("builtins.ValueError", "mine")
    assert "ValueError: mine" in outcome.error.traceback
