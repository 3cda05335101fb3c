"""A replica whose process was taken over answers with pickles: nobody who refuses them loads one.

The same replica is harmful to a caller that takes pickle; that shows that the bombs are real.
"""

from __future__ import annotations

import contextlib

import pytest
from ray import serve
from ray.exceptions import RayTaskError

import serve_grpc
from serve_grpc.errors import ReplicaError, SerializationError
from tests.ray.apps.guarded import Hostile, Messenger
from tests.security.endpoints import OPTIONS, deployed

pytestmark = pytest.mark.ray

PLAIN = ("msgpack", "orjson")
ONLY_PLAIN = {
    **OPTIONS,
    "ray_actor_options": {
        "num_cpus": 0.01,
        "runtime_env": {"env_vars": {"SERVE_GRPC_SERIALIZERS": "msgpack, orjson"}},
    },
}
ANSWERS = [("__call__", ["x"], False), ("items", [3], True), ("fail", ["ValueError"], False)]
every_answer = pytest.mark.parametrize(
    ("method", "args", "stream"), ANSWERS, ids=["result", "item", "exception"]
)
every_serializer = pytest.mark.parametrize("serializer", PLAIN)


@pytest.fixture(scope="module")
def touched(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "touched"


def turned(handle, touched):
    """The deployment's replica, from now on hostile."""
    assert handle.options(_by_reference=True).turn.remote(str(touched)).result(timeout_s=30) is None
    return handle


@pytest.fixture(scope="module")
def strict(serve_instance, touched):
    """Of a deployment that takes no pickle."""
    app = serve_grpc.deployment(serializers=PLAIN, **OPTIONS)(Hostile).bind()
    with deployed(app, "hostile-strict") as handle:
        yield turned(handle, touched)


@pytest.fixture(scope="module")
def lax(serve_instance, touched):
    """Of a deployment that takes all serializers; called by a process that refuses pickle too."""
    target = serve_grpc.deployment(**OPTIONS)(Hostile)
    messenger = serve.deployment(**ONLY_PLAIN)(Messenger)
    with deployed(messenger.bind(target.bind()), "hostile-lax"):
        handle = serve_grpc.get_deployment_handle("Hostile", "hostile-lax")
        yield turned(handle.options(_by_reference=False), touched)


def ask(handle, method, args, stream):
    response = handle.options(method_name=method, stream=stream).remote(*args)
    return list(response) if stream else response.result(timeout_s=20)


@every_serializer
@every_answer
def test_where_the_deployment_takes_no_pickle(strict, touched, serializer, method, args, stream):
    handle = strict.options(request_serialization=serializer, response_serialization=serializer)
    with pytest.raises(Exception) as raised:  # noqa: PT011 (which kinds, the next lines say)
        ask(handle, method, args, stream)
    assert not touched.exists()
    if method == "fail":
        assert raised.value.cause.args == ("a bad value",)  # made of its text, loaded from nothing
        assert "a bad value" in str(raised.value)
    else:
        assert isinstance(raised.value, SerializationError)
        assert raised.value.serializer == serializer


@every_serializer
@every_answer
def test_where_the_callers_process_takes_no_pickle(lax, touched, serializer, method, args, stream):
    messenger = serve.get_deployment_handle("Messenger", "hostile-lax")
    options = {"request_serialization": serializer, "response_serialization": serializer}
    answer = messenger.ask.remote(method, args, stream=stream, **options).result(timeout_s=30)
    assert not touched.exists()
    kind = "RayTaskError" if method == "fail" else "SerializationError"
    assert kind in answer["kinds"]
    assert ("a bad value" if method == "fail" else repr(serializer)) in answer["text"]


@pytest.mark.parametrize("which", ["request", "response"])
def test_such_a_process_asks_for_no_pickle_either(lax, touched, which):
    messenger = serve.get_deployment_handle("Messenger", "hostile-lax")
    options = {"request_serialization": "orjson", "response_serialization": "orjson"}
    options[f"{which}_serialization"] = "cloudpickle"
    answer = messenger.ask.remote("__call__", ["x"], **options).result(timeout_s=30)
    assert "SerializationError" in answer["kinds"]
    for part in ("SERVE_GRPC_SERIALIZERS", "'msgpack', 'orjson'", which, "'cloudpickle'"):
        assert part in answer["text"]
    assert not touched.exists()


@every_answer
def test_a_caller_that_takes_pickle_is_at_its_mercy(lax, touched, method, args, stream):
    """Last, because it touches the file."""
    touched.unlink(missing_ok=True)
    with contextlib.suppress(ReplicaError, RayTaskError):  # what the bomb leaves of an exception
        ask(lax, method, args, stream)
    assert touched.exists()
    touched.unlink()
