"""`Call` and `CallStream` as any gRPC client sees them."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import serve_grpc
from serve_grpc._generated.replica_pb2 import CallRequest, Error
from tests.peer.plain_client import CALL, PlainClient, error_of
from tests.ray.waiting import eventually

SERVICE = "serve_grpc.v1.Replica"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture
def client(target):
    client = PlainClient(*target)
    yield client
    client.close()


def request(method="", args=(), **fields):
    payload = json.dumps([list(args), {}]).encode()
    return CallRequest(method=method, payload=payload, request_serializer="orjson", **fields)


def note(bench, key):
    return bench.watch.remote(key).result(timeout_s=20)["note"]


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


# ------------------------------------------------------------ calls


def test_unary_call_gives_the_result(client):
    assert json.loads(client.call(request(args=["hi"])).payload) == "hi"
    assert json.loads(client.call(request("arguments", [1, 2])).payload) == [[1, 2], {}]


def test_serializers_of_request_and_response_are_chosen_apart(client):
    reply = client.call(request(args=[[1]], response_serializer="msgpack"))
    assert reply.payload == b"\x91\x01"
    pickled = CallRequest(payload=pickle.dumps((("x",), {})))
    assert pickle.loads(client.call(pickled).payload) == "x"


def test_request_id_and_model_id_reach_the_handler(client):
    reply = client.call(request("request", request_id="my-id", multiplexed_model_id="m"))
    facts = json.loads(reply.payload)
    assert (facts["request_id"], facts["model_id"]) == ("my-id", "m")


def test_stream_gives_its_items_then_ends(client):
    items = [json.loads(r.payload) for r in client.stream(request("items", [5]))]
    assert items == [0, 1, 2, 3, 4]


def test_long_stream_is_not_held_up_by_its_window(client):
    items = [json.loads(r.payload) for r in client.stream(request("items", [2_000]))]
    assert items == list(range(2_000))


# ------------------------------------------------------------ errors


def test_user_error_is_a_status_with_an_error_in_the_trailer(client):
    with pytest.raises(grpc.RpcError) as raised:
        client.call(request("fail", ["ValueError"]))
    assert raised.value.code() == grpc.StatusCode.UNKNOWN
    assert "ValueError" in raised.value.details()
    error = error_of(raised.value)
    assert (error.code, error.type_name) == (Error.USER_EXCEPTION, "builtins.ValueError")
    assert error.message == "a bad value"
    assert "raise_kind" in error.traceback


def test_user_error_of_a_stream_comes_after_its_items(client):
    stream = client.stream(request("fail_after", [2, "ValueError"]))
    assert [json.loads(next(stream).payload), json.loads(next(stream).payload)] == [0, 1]
    with pytest.raises(grpc.RpcError) as raised:
        next(stream)
    assert raised.value.code() == grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (CallRequest(payload=b"no json", request_serializer="orjson"), "INVALID_ARGUMENT"),
        (CallRequest(payload=b"[]", request_serializer="yaml"), "INVALID_ARGUMENT"),
        (request("no_such_method"), "UNKNOWN"),
        (request("items", [1]), "UNKNOWN"),
    ],
    ids=["bytes", "serializer", "method", "generator"],
)
def test_wrong_requests_fail_with_a_status(client, wrong, code):
    with pytest.raises(grpc.RpcError) as raised:
        client.call(wrong)
    assert raised.value.code().name == code
    assert error_of(raised.value).message


def test_deadline_ends_the_handler(client, bench):
    with pytest.raises(grpc.RpcError) as raised:
        client.call(request("hold", ["peer-deadline"]), timeout=0.3)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: note(bench, "peer-deadline") == "cancelled")


def test_cancel_ends_the_handler(client, bench):
    call = client.future(request("hold", ["peer-cancel"]))
    eventually(lambda: note(bench, "peer-cancel") == "running")
    call.cancel()
    eventually(lambda: note(bench, "peer-cancel") == "cancelled")


def test_cancel_of_a_stream_stops_its_producer(client, bench):
    stream = client.stream(request("endless", ["peer-stream", 1000]), wait_for_ready=True)
    with pytest.raises(grpc.RpcError):  # orjson takes no bytes
        next(stream)
    ok = request("endless", ["peer-stream-2", 1000], response_serializer="noop")
    stream = client.stream(ok)
    assert next(stream).payload == b"x" * 1000
    stream.cancel()
    eventually(lambda: note(bench, "peer-stream-2") in ("cancelled", "closed"))


# ------------------------------------------------------------ who may call


def test_call_without_proof_is_refused_and_nothing_is_deserialized(client, tmp_path):
    touched = tmp_path / "touched"
    bomb = CallRequest(payload=pickle.dumps(((Touch(touched),), {})))
    for metadata in ((), (("authorization", "serve-grpc-v1 1 2 3"),), (("authorization", "x"),)):
        with pytest.raises(grpc.RpcError) as raised:
            client.stub.Call(bomb, timeout=20, metadata=metadata)
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as raised:
            next(client.stub.CallStream(bomb, timeout=20, metadata=metadata))
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert not touched.exists()
    client.call(CallRequest(method="kind_of", payload=bomb.payload))
    assert touched.exists()  # with a proof the same bytes are read


def test_a_member_signs_calls_without_knowing_the_secret(client, target):
    message = request(args=[1])
    proof = serve_grpc.sign_call(target.replica_id, CALL, message.SerializeToString())
    assert client.stub.Call(message, timeout=20, metadata=proof).payload == b"1"
    proof = serve_grpc.sign_call(target.replica_id, CALL, b"other")
    with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
        client.stub.Call(message, timeout=20, metadata=proof)
    proof = serve_grpc.sign_call(target.replica_id, HEALTH)
    ask = health_pb2.HealthCheckRequest(service=SERVICE)
    answer = health_pb2_grpc.HealthStub(client.channel).Check(ask, timeout=20, metadata=proof)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_proof_works_once(client):
    message = request(args=[1])
    proof = client.proof(CALL, message.SerializeToString())
    assert client.stub.Call(message, timeout=20, metadata=proof).payload == b"1"
    with pytest.raises(grpc.RpcError) as raised:
        client.stub.Call(message, timeout=20, metadata=proof)
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_proof_is_for_these_bytes_this_method_this_replica_and_now(client, target):
    message = request(args=[1])
    data = message.SerializeToString()
    stranger = PlainClient(target.address, "another", target.secret)
    outsider = PlainClient(target.address, target.replica_id, b"0" * 32)
    wrong = {
        "bytes": client.proof(CALL, b"other"),
        "method": client.proof(CALL + "Stream", data),
        "replica": stranger.proof(CALL, data),
        "secret": outsider.proof(CALL, data),
        "past": client.proof(CALL, data, now_s=time.time() - 3600),
        "future": client.proof(CALL, data, now_s=time.time() + 3600),
    }
    for proof in wrong.values():
        with pytest.raises(grpc.RpcError) as raised:
            client.stub.Call(message, timeout=20, metadata=proof)
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    stranger.close()
    outsider.close()


# ------------------------------------------------------------ health and reflection


def test_health_needs_a_proof(client):
    stub = health_pb2_grpc.HealthStub(client.channel)
    ask = health_pb2.HealthCheckRequest(service=SERVICE)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Check(ask, timeout=20)
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    answer = stub.Check(ask, timeout=20, metadata=client.proof(HEALTH))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_needs_a_proof(client):
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.ServerReflectionInfo(iter([ask]), timeout=20))
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    answers = list(
        stub.ServerReflectionInfo(iter([ask]), timeout=20, metadata=client.proof(REFLECTION))
    )
    names = {s.name for s in answers[0].list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
