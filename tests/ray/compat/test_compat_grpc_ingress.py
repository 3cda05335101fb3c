"""A gRPC ingress, behind Serve's gRPC proxy, whose inner calls go over the transport."""

from __future__ import annotations

import ast

import grpc
import pytest
import ray
from ray import serve
from ray.serve.generated.serve_pb2 import UserDefinedMessage
from ray.serve.generated.serve_pb2_grpc import UserDefinedServiceStub

import serve_grpc
from tests.ray.apps.ingress import grpc_app
from tests.ray.compat.behaviours import behaviour
from tests.ray.waiting import eventually

INGRESS = "Ingress"
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def front(deploy):
    handle = deploy(grpc_app(), "grpc-ingress", route_prefix="/grpc-ingress")
    return handle.options(_by_reference=True)


@pytest.fixture(scope="module")
def links(front):
    """By-reference handles to the links behind the ingress."""
    handles = [serve_grpc.get_deployment_handle(n, "grpc-ingress") for n in ("Middle", "Back")]
    yield [front, *handles]
    for handle in handles:
        handle.shutdown()


class Client:
    """Calls the ingress; `transport` goes into each message."""

    def __init__(self, channel, transport):
        self.stub = UserDefinedServiceStub(channel)
        self.transport = transport

    def message(self, name="", num=0):
        return UserDefinedMessage(name=name, foo=self.transport, num=num)

    def options(self, **metadata):
        metadata = {"application": "grpc-ingress", **metadata}
        return {"metadata": tuple(metadata.items()), "timeout": TIMEOUT_S, "wait_for_ready": True}

    def ask(self, what, **metadata):
        return self.stub.Method1(self.message(what), **self.options(**metadata)).greeting

    def refused(self, what):
        with pytest.raises(grpc.RpcError) as raised:
            self.ask(what)
        return raised.value


@pytest.fixture
def client(links, transport):
    port = ray.get(serve.context._get_global_client()._controller.get_grpc_config.remote()).port
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = Client(channel, transport.name)

        def is_ready():
            try:
                return client.ask("echo ready")
            except grpc.RpcError:
                return False

        eventually(is_ready, timeout_s=TIMEOUT_S)
        yield client


def notes(links, key):
    return [link.watch.remote(key).result(timeout_s=20)[0] for link in links]


@behaviour(INGRESS, "A gRPC ingress answers all four kinds of RPC from inner calls")
def test_four_kinds(client, links, key):
    options = client.options()
    answer = client.stub.__call__(client.message("hello", 21), **options)
    assert (answer.greeting, answer.num_x2) == ("hello", 42)
    messages = [client.message(num=i) for i in range(5)]
    assert client.stub.ClientStreaming(iter(messages), **options).num_x2 == 20
    answers = client.stub.BidiStreaming(iter(messages), **options)
    assert [answer.num_x2 for answer in answers] == [0, 2, 4, 6, 8]
    stream = client.stub.Streaming(client.message(key, 4), **options)
    assert [next(stream).num_x2, next(stream).num_x2] == [0, 2]
    links[-1].release.remote(key).result(timeout_s=20)
    assert [answer.num_x2 for answer in stream] == [4, 6]


@behaviour(INGRESS, "An inner error ends an RPC with INTERNAL, or with the code the ingress sets")
def test_status_codes(client):
    assert client.refused("fail ValueError").code() is grpc.StatusCode.INTERNAL
    error = client.refused("fail Detailed")
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "code 42")


@behaviour(INGRESS, "A full queue before an inner deployment ends an RPC with RESOURCE_EXHAUSTED")
def test_back_pressure(client, links, key):
    def ask():
        message = client.message(f"squeeze {key}")
        return client.stub.Method1.future(message, **client.options())

    answers = [ask()]
    eventually(lambda: notes(links, key)[-1] == "running")
    answers += [ask() for _ in range(4)]
    eventually(lambda: sum(answer.done() for answer in answers) == 3)
    links[-1].release.remote(key).result(timeout_s=20)
    codes = [answer.code() for answer in answers]
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 3
    assert codes.count(grpc.StatusCode.OK) == 2


@behaviour(INGRESS, "A gRPC client that cancels, or whose deadline passes, cancels the whole chain")
def test_cancel(client, links, key):
    call = client.stub.Method1.future(client.message(f"hold {key}"), **client.options())
    eventually(lambda: notes(links, key) == ["running"] * 3)
    call.cancel()
    eventually(lambda: notes(links, key) == ["CancelledError"] * 3)
    late = f"{key}-late"
    options = {**client.options(), "timeout": 5}
    call = client.stub.Method1.future(client.message(f"hold {late}"), **options)
    eventually(lambda: notes(links, late) == ["running"] * 3)
    eventually(lambda: notes(links, late) == ["CancelledError"] * 3)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@behaviour(INGRESS, "The request id and the model in an RPC's metadata reach inner calls")
def test_metadata(client, key):
    answer = client.ask("request", request_id=key, multiplexed_model_id="model-7")
    links = ast.literal_eval(answer)
    assert [link["request_id"] for link in links] == [key] * 3
    assert [link["model"] for link in links] == ["model-7"] * 3


@behaviour(INGRESS, "The gRPC context can be passed on to an inner call as an argument")
def test_context_as_an_argument(client, key):
    assert client.ask("context", color=key) == repr(key)
