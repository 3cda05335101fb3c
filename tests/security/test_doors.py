"""Every door without a proof: refused before a byte is decoded, and no file is touched."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import serve_grpc
from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    CallRequest,
    Hello,
    Proof,
    Refusal,
    ReplicaBatch,
    Request,
    RequestContext,
    Template,
)
from serve_grpc._generated.replica_pb2_grpc import ReplicaStub
from tests.peer.plain_client import CALL, CALL_STREAM, PlainClient
from tests.peer.session_client import SessionClient
from tests.ray.apps.guarded import Guarded, Touch
from tests.ray.waiting import eventually
from tests.security.endpoints import OPTIONS, Target, decoded, deployed, targets_of

pytestmark = pytest.mark.ray

WRONG = os.urandom(32)
NO_PROOF = {
    "nothing": (),
    "empty": (("authorization", ""),),
    "other scheme": (("authorization", "Bearer abc"),),
    "made up": (("authorization", "serve-grpc-v1 1 2 3"),),
}
every_lack = pytest.mark.parametrize("metadata", NO_PROOF.values(), ids=NO_PROOF.keys())


@pytest.fixture(scope="module")
def guarded(serve_instance):
    app = serve_grpc.deployment(**OPTIONS)(Guarded).bind()
    with deployed(app, "doors") as handle:
        assert handle.remote(1).result(timeout_s=30) == 1
        yield handle


@pytest.fixture(scope="module")
def target(guarded) -> Target:
    (target,) = targets_of(guarded)
    return target


@pytest.fixture
def channel(target):
    with grpc.insecure_channel(target.address) as channel:
        yield channel


@pytest.fixture
def untouched(guarded, tmp_path):
    """The file that a pickle would touch; and that the replica read nothing meanwhile."""
    before = decoded(guarded)
    path = tmp_path / "touched"
    yield path
    assert decoded(guarded) == before
    assert not path.exists()


def bomb(path: Path) -> bytes:
    return pickle.dumps(((Touch(path),), {}))


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_bomb_is_one(guarded, tmp_path):
    """With a proof the same bytes are read, and counted: what the other tests rest on."""
    (target,) = targets_of(guarded)
    client = PlainClient(*target)
    before = decoded(guarded)
    client.call(CallRequest(method="facts", payload=pickle.dumps(((), {}))))
    with pytest.raises(grpc.RpcError):  # a path does not come back as it is, or is one too many
        client.call(CallRequest(method="facts", payload=bomb(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()
    assert decoded(guarded) == before + 2
    client.close()


@every_lack
def test_call(channel, untouched, metadata):
    request = CallRequest(payload=bomb(untouched))
    refused(lambda: ReplicaStub(channel).Call(request, timeout=20, metadata=metadata))


@every_lack
def test_call_stream(channel, untouched, metadata):
    request = CallRequest(method="items", payload=bomb(untouched))
    stub = ReplicaStub(channel)
    refused(lambda: list(stub.CallStream(request, timeout=20, metadata=metadata)))


@every_lack
def test_health(channel, untouched, metadata):
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest()
    refused(lambda: stub.Check(request, timeout=20, metadata=metadata))
    refused(lambda: list(stub.Watch(request, timeout=20, metadata=metadata)))


@every_lack
def test_reflection(channel, untouched, metadata):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    refused(lambda: list(stub.ServerReflectionInfo(iter(asked), timeout=20, metadata=metadata)))


@pytest.mark.parametrize("method", ["/serve_grpc.v1.Replica/None", "/ray.serve.Any/Method", "/x"])
def test_methods_that_do_not_exist(channel, untouched, method):
    call = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    with pytest.raises(grpc.RpcError) as raised:
        call(bomb(untouched), timeout=20)
    codes = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
    assert raised.value.code() in codes


def requests(path: Path) -> dict[str, object]:
    """A request and its template, with a pickle in each place that may hold bytes."""
    context = RequestContext(grpc_context=bomb(path))
    return {
        "templates": [Template(number=1, request_serializer="cloudpickle")],
        "requests": [Request(id=1, template=1, payload=bomb(path), context=context)],
    }


@pytest.mark.parametrize("has_hello", [False, True])
def test_session_with_a_request_before_the_proof(target, untouched, has_hello):
    client = SessionClient(target.address, target.replica_id, WRONG)
    hello = Hello(min_version=1, max_version=1, replica_id=target.replica_id, nonce=b"n" * 16)
    batch = CallerBatch(**requests(untouched), **({"hello": hello} if has_hello else {}))
    client.send(batch)
    answer = client.receive()
    if has_hello:  # the challenge; nothing but the hello was looked at
        client.send(CallerBatch(**requests(untouched)))
        answer = client.receive()
    assert answer.refusal.reason == Refusal.PROTOCOL
    client.close()


@pytest.mark.parametrize("mac", [b"", b"m" * 32, None], ids=["empty", "made up", "wrong secret"])
def test_session_with_a_wrong_proof(target, untouched, mac):
    client = SessionClient(target.address, target.replica_id, WRONG)
    challenge = client.hello()
    if mac is None:
        answer = client.proof(challenge)
    else:
        client.send(CallerBatch(proof=Proof(mac=mac), **requests(untouched)))
        answer = client.receive()
    assert answer.refusal.reason == Refusal.UNAUTHENTICATED
    client.close()


def test_session_of_an_unknown_key(target, untouched):
    client = SessionClient(target.address, target.replica_id, WRONG)
    answer: ReplicaBatch = client.hello(key_id=b"unknown!")
    assert answer.refusal.reason == Refusal.UNAUTHENTICATED
    client.close()


@pytest.mark.parametrize("method", [CALL, CALL_STREAM])
def test_a_proof_for_one_request_lets_no_other_in(target, channel, untouched, method):
    """The digest is signed: bytes that were put in the place of others are not decoded."""
    client = PlainClient(*target)
    metadata = client.proof(method, CallRequest(request_serializer="orjson").SerializeToString())
    call = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    request = CallRequest(payload=bomb(untouched)).SerializeToString()
    refused(lambda: call(request, timeout=20, metadata=metadata))
    client.close()


def test_the_replica_still_works(guarded):
    eventually(lambda: guarded.remote("after").result(timeout_s=20) == "after")
