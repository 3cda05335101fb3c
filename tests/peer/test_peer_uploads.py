"""`CallUpload` and `CallExchange` as any gRPC client sees them."""

from __future__ import annotations

import asyncio
import json
import threading

import grpc
import pytest

import serve_grpc
from serve_grpc._generated.replica_pb2 import CallPart, CallRequest, Error, Input
from tests.peer.plain_client import CALL_UPLOAD, PlainClient, error_of
from tests.ray.apps.gated import Board
from tests.ray.apps.uploads import Uploads
from tests.ray.waiting import eventually

ITEM = "i" * 20_000
"""A window holds about fifty of them."""


@pytest.fixture(scope="module")
def address(serve_instance):
    """(address, id) of a replica that takes streams."""
    deployment = serve_grpc.deployment(ray_actor_options={"num_cpus": 0.1})(Uploads)
    handle = serve_grpc.run(deployment.bind(), name="uploads", route_prefix=None)

    async def chosen():
        async with handle.choose_replica() as replica:
            return replica.replica_metadata["serve_grpc"]["address"], replica.replica_id

    return asyncio.run(chosen())


@pytest.fixture
def client(address, target):
    client = PlainClient(*address, target.secret)
    yield client
    client.close()


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path)
    yield board
    board.release()


def start(method, args=(None,), kwargs=None, **place):
    payload = json.dumps([list(args), kwargs or {}]).encode()
    request = CallRequest(method=method, payload=payload, request_serializer="orjson")
    return CallPart(start=CallPart.Start(request=request, input=Input(**place)))


def item(value):
    return CallPart(item=json.dumps(value).encode())


END = CallPart(end=True)


def values(replies):
    return [json.loads(reply.payload) for reply in replies]


def test_an_upload_gets_one_result(client):
    parts = [start("total"), item(1), item(2), item(3), END]
    assert json.loads(client.upload(parts).payload) == 6


def test_an_exchange_gets_a_result_for_each_item(client):
    # The next item is sent only when the answer to the one before it is there.
    answered = threading.Semaphore(1)

    def parts():
        yield start("echo")
        for number in range(5):
            answered.acquire(timeout=10)
            yield item(number)
        yield END

    heard = []
    for reply in client.exchange(parts()):
        heard.append(json.loads(reply.payload))
        answered.release()
    assert heard == [0, 1, 2, 3, 4]


def test_code_in_a_thread_gets_it_as_well(client):
    parts = [start("echo_in_thread"), item("a"), item("b"), END]
    assert values(client.exchange(parts)) == ["a", "b"]


def test_the_stream_may_be_any_argument(client):
    parts = [start("total", [100, None], position=1), item(1), END]
    assert json.loads(client.upload(parts).payload) == 101
    parts = [start("total", [100], name="numbers"), item(2), END]
    assert json.loads(client.upload(parts).payload) == 102


@pytest.mark.parametrize(
    "place",
    [{"position": 3}, {"name": "start"}, {}],
    ids=["behind", "a name that is taken", "value"],
)
def test_a_place_that_is_none_is_refused(client, place):
    args, kwargs = (["x"], {"start": 1})
    with pytest.raises(grpc.RpcError) as caught:
        client.upload([start("total", args, kwargs, **place), END])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_of(caught.value).code == Error.INVALID_REQUEST


def test_a_bare_half_close_is_no_end(client):
    """gRPC shows a server a half-close as it shows a cancel, so an end is said."""
    with pytest.raises(grpc.RpcError) as caught:
        client.upload([start("total"), item(1)])
    error = error_of(caught.value)
    assert (caught.value.code(), error.type_name) == (
        grpc.StatusCode.UNKNOWN,
        "serve_grpc.errors.RequestStreamError",
    )
    assert "without `end`" in error.message


def test_a_cancel_is_no_end(client, board):
    def parts():
        yield start("note_items", [None, board.path])
        yield item("first")
        eventually(lambda: board.count("item") == 1)
        call.cancel()
        yield item("never sent")

    metadata = client.proof(
        CALL_UPLOAD, start("note_items", [None, board.path]).SerializeToString()
    )
    call = client.stub.CallUpload.future(parts(), timeout=20, metadata=metadata)
    with pytest.raises(grpc.FutureCancelledError):
        call.result(timeout=20)
    eventually(lambda: board.count("cancelled") + board.count("failed") == 1)
    assert (board.count("item"), board.count("end")) == (1, 0)


def test_a_client_is_held_back_by_a_handler_that_does_not_read(client, board):
    sent = []

    def parts():
        yield start("held", [None, board.path])
        for number in range(2000):
            sent.append(number)
            yield item(ITEM)
        yield END

    metadata = client.proof(CALL_UPLOAD, start("held", [None, board.path]).SerializeToString())
    call = client.stub.CallUpload.future(parts(), timeout=60, metadata=metadata)
    eventually(lambda: board.count("start") == 1)
    steady = [-1]

    def has_stopped():
        steady.append(len(sent))
        return steady[-1] == steady[-2] > 0

    eventually(has_stopped, timeout_s=20)
    assert len(sent) < 1500  # the window, and what lies in gRPC's own buffers
    board.release()
    assert json.loads(call.result(timeout=60).payload) == 2000


def test_a_handler_that_stops_early_answers(client):
    parts = [start("first"), *(item(ITEM) for _ in range(500)), END]
    assert json.loads(client.upload(parts).payload) == ITEM


def test_a_message_that_is_no_item_fails_the_stream(client):
    with pytest.raises(grpc.RpcError, match="neither an item nor an end"):
        client.upload([start("total"), start("total")])


def test_it_begins_with_a_start(client):
    with pytest.raises(grpc.RpcError, match="begins with `start`") as caught:
        client.upload([item(1), END])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("metadata", [(), (("authorization", "serve-grpc-v1 1 2 3"),)])
def test_without_a_proof_nothing_is_read(client, metadata):
    with pytest.raises(grpc.RpcError) as caught:
        client.upload([start("total"), END], metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_proof_is_of_the_first_part(client):
    metadata = client.proof(CALL_UPLOAD, start("echo").SerializeToString())
    with pytest.raises(grpc.RpcError) as caught:
        client.upload([start("total"), END], metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_proof_is_good_once(client):
    parts = [start("total"), END]
    metadata = client.proof(CALL_UPLOAD, parts[0].SerializeToString())
    assert json.loads(client.upload(parts, metadata=metadata).payload) == 0
    with pytest.raises(grpc.RpcError) as caught:
        client.upload(parts, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
