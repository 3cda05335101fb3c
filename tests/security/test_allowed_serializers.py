"""A deployment that lists its serializers: others are refused undecoded, whoever asks for them."""

from __future__ import annotations

import asyncio
import pickle

import grpc
import msgpack
import pytest
from ray import serve

import serve_grpc
from serve_grpc._generated.replica_pb2 import CallRequest, Error, Template
from serve_grpc.errors import SerializationError
from tests.peer.plain_client import PlainClient, error_of
from tests.peer.session_client import SessionClient
from tests.ray.apps.guarded import Guarded, Touch
from tests.ray.listing import infos_of
from tests.ray.waiting import eventually
from tests.security.endpoints import OPTIONS, Target, decoded, deployed, targets_of

pytestmark = pytest.mark.ray

PLAIN = ("msgpack", "orjson")
MSGPACK = {"request_serialization": "msgpack", "response_serialization": "msgpack"}
NAMED = "takes 'msgpack', 'orjson' only"
ARGUMENTS = msgpack.packb([[7], {}])


@pytest.fixture(scope="module")
def strict(serve_instance):
    app = serve_grpc.deployment(serializers=PLAIN, **OPTIONS)(Guarded).bind()
    with deployed(app, "strict") as handle:
        yield handle


@pytest.fixture(scope="module")
def target(strict) -> Target:
    (target,) = targets_of(strict)
    return target


@pytest.fixture
def untouched(strict, tmp_path):
    """The file that a pickle would touch; and that the replica read nothing meanwhile."""
    before = decoded(strict)
    path = tmp_path / "touched"
    yield path
    assert decoded(strict) == before
    assert not path.exists()


# ------------------------------------------------------------ handles


def test_what_is_listed_works(strict):
    for name in PLAIN:
        handle = strict.options(request_serialization=name, response_serialization=name)
        assert handle.remote([1, "two"]).result(timeout_s=20) == [1, "two"]
        assert list(handle.options(stream=True).items.remote(4)) == [0, 1, 2, 3]
    mixed = strict.options(request_serialization="msgpack", response_serialization="orjson")
    assert mixed.remote({"a": None}).result(timeout_s=20) == {"a": None}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {**MSGPACK, "request_serialization": "pickle"},
        {**MSGPACK, "response_serialization": "noop"},
    ],
    ids=["defaults", "request", "response"],
)
def test_other_serializers_are_refused_before_anything_is_serialized(strict, options, stream):
    before = decoded(strict)
    handle = strict.options(method_name="items" if stream else "__call__", stream=stream, **options)
    response = handle.remote(NotSerializable())
    with pytest.raises(SerializationError, match=NAMED) as raised:
        next(response) if stream else response.result(timeout_s=20)
    error = raised.value
    assert (error.request_id, error.may_have_executed) == (response.request_id, False)
    assert "deployment 'Guarded'" in str(error)
    assert "handle.options(" in str(error)
    assert decoded(strict) == before


class NotSerializable:
    """Nobody tries."""

    def __reduce__(self):
        raise AssertionError("it was about to be pickled")


def test_a_call_made_before_the_replicas_are_known_is_refused_too(strict):
    fresh = pickle.loads(pickle.dumps(strict))
    with pytest.raises(SerializationError, match=NAMED):
        fresh.remote(1).result(timeout_s=20)
    assert fresh.options(**MSGPACK).remote(1).result(timeout_s=20) == 1


def test_by_reference_is_not_concerned(strict):
    assert strict.options(_by_reference=True).remote({1, 2}).result(timeout_s=20) == {1, 2}


@pytest.mark.parametrize("kind", ["ValueError", "Detailed"])
def test_an_exception_arrives_as_type_text_and_traceback(strict, kind):
    with pytest.raises(Exception) as raised:  # noqa: PT011 (of which kind, the next lines say)
        strict.options(**MSGPACK).fail.remote(kind).result(timeout_s=20)
    error = raised.value
    assert "RayTaskError" in [kind.__name__ for kind in type(error).__mro__]
    # One of Python's own is made of its text; nothing is loaded.
    assert isinstance(error, ValueError) is (kind == "ValueError")
    assert kind in str(error)
    assert "in raise_kind" in str(error)


def test_a_response_is_passed_on_as_a_value(strict, serve_instance):
    """Its result is loaded, and written again as the next call's serializer says."""
    handle = strict.options(**MSGPACK)
    assert handle.remote(handle.remote("inner")).result(timeout_s=20) == "inner"


# ------------------------------------------------------------ calls to chosen replicas


async def chosen(handle, *args):
    async with handle.choose_replica() as replica:
        return await handle.dispatch(replica, *args)


def test_calls_to_a_chosen_replica(strict):
    assert asyncio.run(chosen(strict.options(**MSGPACK), "there")) == "there"
    with pytest.raises(SerializationError, match=NAMED):
        asyncio.run(chosen(strict, NotSerializable()))


def test_broadcasts(strict):
    assert strict.options(**MSGPACK).broadcast("__call__", 3).results(timeout_s=20) == [3]
    with pytest.raises(SerializationError, match=NAMED):
        strict.broadcast("__call__", NotSerializable()).results(timeout_s=20)


# ------------------------------------------------------------ peers that do as they like


def bomb(path) -> bytes:
    return pickle.dumps(((Touch(path),), {}))


@pytest.mark.parametrize("names", [("cloudpickle", ""), ("PICKLE", "msgpack"), ("", "")])
def test_plain_calls_with_a_pickle(target, untouched, names):
    client = PlainClient(*target)
    request = CallRequest(
        payload=bomb(untouched), request_serializer=names[0], response_serializer=names[1]
    )
    for call in (client.call, lambda request: list(client.stream(request))):
        with pytest.raises(grpc.RpcError) as raised:
            call(request)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = error_of(raised.value)
        assert (error.code, error.may_have_executed) == (Error.SERIALIZATION, False)
        assert NAMED in error.message
    client.close()


def test_a_plain_call_for_a_pickle(target, untouched):
    client = PlainClient(*target)
    request = CallRequest(
        payload=ARGUMENTS, request_serializer="msgpack", response_serializer="pickle"
    )
    with pytest.raises(grpc.RpcError) as raised:
        client.call(request)
    assert NAMED in error_of(raised.value).message
    client.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("names", [("cloudpickle", "msgpack"), ("msgpack", "pickle")])
def test_a_session_with_a_pickle(target, untouched, names, stream):
    client = SessionClient(*target)
    client.open()
    payload = bomb(untouched) if names[0] != "msgpack" else ARGUMENTS
    template = Template(
        number=1,
        method="__call__",
        request_serializer=names[0],
        response_serializer=names[1],
        stream=stream,
    )
    (reply,) = client.replies(client.request(payload, template, credit_items=9, credit_bytes=999))
    assert reply.error.code == Error.SERIALIZATION
    assert (NAMED in reply.error.message, reply.error.pickled) == (True, b"")
    client.close()


def test_a_peer_gets_no_pickled_exception(target):
    client = SessionClient(*target)
    client.open()
    template = Template(
        number=1, method="fail", request_serializer="msgpack", response_serializer="msgpack"
    )
    (reply,) = client.replies(client.request(msgpack.packb([["ValueError"], {}]), template))
    assert (reply.error.code, reply.error.pickled) == (Error.USER_EXCEPTION, b"")
    assert (reply.error.type_name, reply.error.message) == ("builtins.ValueError", "a bad value")
    client.close()


# ------------------------------------------------------------ where lists come from


def published(handle) -> list[str] | None:
    handle.options(_by_reference=True).facts.remote().result(timeout_s=30)
    (info,) = infos_of(handle)
    entry = info.replica_metadata["serve_grpc"]
    names: list[str] | None = entry.get("serializers")
    return names


def test_the_list_is_published_and_kept_by_options(strict):
    assert published(strict) == ["msgpack", "orjson"]


def with_env(value: str) -> dict[str, object]:
    env = {"env_vars": {"SERVE_GRPC_SERIALIZERS": value}}
    return {**OPTIONS, "ray_actor_options": {"num_cpus": 0.01, "runtime_env": env}}


def test_the_environment_of_a_replica_narrows_its_list(serve_instance):
    plain = serve.deployment(**with_env("orjson,noop"))(Guarded)
    app = serve_grpc.enable(plain.bind(), serializers=PLAIN)
    with deployed(app, "narrowed") as handle:
        assert published(handle) == ["orjson"]
        with pytest.raises(SerializationError, match="takes 'orjson' only"):
            handle.options(**MSGPACK).remote(1).result(timeout_s=20)
        orjson = handle.options(request_serialization="orjson", response_serialization="orjson")
        assert orjson.remote(1).result(timeout_s=20) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [("msgpak", "SERVE_GRPC_SERIALIZERS names 'msgpak'"), ("noop", "allows none of the")],
)
def test_an_environment_that_makes_no_sense_stops_the_start(serve_instance, value, text):
    options = {**with_env(value), "max_constructor_retry_count": 1}  # it fails each time
    app = serve_grpc.deployment(serializers=PLAIN, **options)(Guarded).bind()
    with pytest.raises(RuntimeError):
        serve_grpc.run(app, name="senseless", route_prefix=None)
    status = serve.status().applications["senseless"].deployments["Guarded"]
    assert text in status.message
    serve.delete("senseless", _blocking=False)


def test_a_list_that_comes_with_an_update_is_followed(serve_instance):
    guarded = serve_grpc.deployment(**OPTIONS)(Guarded)
    with deployed(guarded.bind(), "updated") as handle:
        assert handle.remote({1}).result(timeout_s=20) == {1}
        strict = serve_grpc.enable(guarded.bind(), serializers=PLAIN)
        serve_grpc.run(strict, name="updated", route_prefix=None)

        def refusal():
            try:
                handle.remote({1}).result(timeout_s=20)
            except SerializationError as error:
                return str(error)
            return ""

        # The caller hears of the new replica soon after it is there.
        assert NAMED in eventually(refusal, timeout_s=30)
        assert handle.options(**MSGPACK).remote(1).result(timeout_s=20) == 1
