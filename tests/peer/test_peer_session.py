"""The session, spoken by another implementation."""

from __future__ import annotations

import json

import grpc
import pytest

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Credit,
    Error,
    Fragment,
    Refusal,
    ReplicaBatch,
    Reply,
    Request,
    Template,
)
from tests.peer.session_client import SessionClient
from tests.ray.waiting import eventually

JSON = {"request_serializer": "orjson", "response_serializer": "orjson"}


@pytest.fixture
def session(target):
    session = SessionClient(*target)
    yield session
    session.close()


@pytest.fixture
def opened(session):
    session.open()
    return session


def payload(*args):
    return json.dumps([list(args), {}]).encode()


def note(bench, key):
    return bench.watch.remote(key).result(timeout_s=20)["note"]


# ------------------------------------------------------------ handshake


def test_welcome_tells_the_limits(session):
    welcome = session.proof(session.hello()).welcome
    assert session.is_replica_proven
    assert welcome.max_ongoing_requests == 200
    assert welcome.max_message_bytes == 4 * 1024 * 1024


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"replica_id": "another"}, Refusal.WRONG_REPLICA),
        ({"min_version": 99, "max_version": 99}, Refusal.VERSION),
        ({"nonce": b"short"}, Refusal.PROTOCOL),
    ],
    ids=["replica", "version", "nonce"],
)
def test_hello_that_does_not_fit_is_refused(session, fields, reason):
    answer = session.hello(**fields)
    assert answer.refusal.reason == reason
    assert answer.refusal.message
    assert not answer.HasField("challenge")
    with pytest.raises((StopIteration, grpc.RpcError)):
        session.receive()


def test_wrong_secret_is_refused(target):
    session = SessionClient(target.address, target.replica_id, b"0" * 32)
    answer = session.proof(session.hello())
    assert not session.is_replica_proven
    assert answer.refusal.reason == Refusal.UNAUTHENTICATED
    session.close()


def test_requests_before_the_proof_are_refused(session):
    session.send(CallerBatch(requests=[Request(id=1, template=1)]))
    assert session.receive().refusal.reason == Refusal.PROTOCOL


def test_newer_hello_with_unknown_features_is_welcome(session):
    answer = session.hello(max_version=99, features=["something new"])
    assert answer.challenge.version == 1
    assert session.proof(answer).HasField("welcome")


def test_bytes_that_are_no_message_end_the_session(target):
    with grpc.insecure_channel(target.address) as channel:
        call = channel.stream_stream("/serve_grpc.v1.Replica/Session")(iter([b"\xff" * 50]))
        assert ReplicaBatch.FromString(next(call)).refusal.reason == Refusal.PROTOCOL
        with pytest.raises(grpc.RpcError):
            next(call)
    assert call.code() == grpc.StatusCode.INVALID_ARGUMENT


# ------------------------------------------------------------ calls


def test_request_gets_its_reply(opened):
    call_id = opened.request(payload("hi"), Template(number=1, method="__call__", **JSON))
    (reply,) = opened.replies(call_id)
    assert (reply.kind, json.loads(reply.payload)) == (Reply.RESULT, "hi")


def test_user_error_comes_with_type_and_traceback(opened):
    call_id = opened.request(payload("ValueError"), Template(number=1, method="fail", **JSON))
    (reply,) = opened.replies(call_id)
    assert reply.kind == Reply.ERROR
    assert reply.error.code == Error.USER_EXCEPTION
    assert reply.error.type_name == "builtins.ValueError"
    assert "raise_kind" in reply.error.traceback


def test_stream_stops_at_its_credit_and_goes_on_with_more(opened, bench):
    template = Template(
        number=1,
        method="endless",
        request_serializer="orjson",
        response_serializer="noop",
        stream=True,
    )
    key = "peer-credit"
    call_id = opened.request(payload(key, 10), template, credit_items=3, credit_bytes=1000)
    replies = opened.replies(call_id)
    assert [next(replies).payload for _ in range(3)] == [b"x" * 10] * 3
    eventually(
        lambda: bench.watch.remote(key).result(timeout_s=20)["produced"] == 4
    )  # the fourth waits
    opened.send(CallerBatch(credits=[Credit(id=call_id, items=2, bytes=100)]))
    assert [next(replies).payload for _ in range(2)] == [b"x" * 10] * 2
    opened.send(CallerBatch(cancels=[call_id]))
    eventually(lambda: note(bench, key) == "cancelled")


def test_fragments_are_put_together(opened):
    data = payload("x" * 100_000)
    template = Template(number=1, method="kind_of", **JSON)
    opened.send(CallerBatch(fragments=[Fragment(id=1, data=data[:50_000])]))
    opened.send(CallerBatch(fragments=[Fragment(id=1, data=data[50_000:])]))
    call_id = opened.request(b"", template)
    assert call_id == 1
    (reply,) = opened.replies(call_id)
    assert json.loads(reply.payload) == "str"


def test_large_reply_comes_in_fragments(opened):
    template = Template(
        number=1, method="payload", request_serializer="orjson", response_serializer="noop"
    )
    call_id = opened.request(payload(1_000_000), template)
    (reply,) = opened.replies(call_id)
    assert reply.payload == b"x" * 1_000_000


def test_deadline_is_kept_by_the_replica(opened, bench):
    template = Template(number=1, method="hold", **JSON)
    call_id = opened.request(payload("peer-timeout"), template, timeout_ms=200)
    (reply,) = opened.replies(call_id)
    assert reply.error.code == Error.DEADLINE_EXCEEDED
    assert note(bench, "peer-timeout") == "cancelled"


def test_leaving_cancels_what_runs(opened, bench):
    opened.request(payload("peer-left"), Template(number=1, method="hold", **JSON))
    eventually(lambda: note(bench, "peer-left") == "running")
    opened.close()
    eventually(lambda: note(bench, "peer-left") == "cancelled")


def test_unknown_template_fails_that_request_only(opened):
    opened.send(CallerBatch(requests=[Request(id=1, template=77, payload=payload(1))]))
    (reply,) = opened.replies(1)
    assert reply.error.code == Error.INVALID_REQUEST
    opened.next_id = 2
    call_id = opened.request(payload("still"), Template(number=1, method="__call__", **JSON))
    (reply,) = opened.replies(call_id)
    assert json.loads(reply.payload) == "still"


def test_unknown_cancels_and_credits_are_ignored(opened):
    opened.send(CallerBatch(cancels=[99], credits=[Credit(id=98, items=1, bytes=1)]))
    call_id = opened.request(payload("hi"), Template(number=1, method="__call__", **JSON))
    (reply,) = opened.replies(call_id)
    assert json.loads(reply.payload) == "hi"


def test_ping_is_echoed(opened):
    opened.send(CallerBatch(ping=42))
    while not (pong := opened.receive().pong):
        pass
    assert pong == 42
