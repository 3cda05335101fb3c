"""ObjectRefs inside of calls whose sender, session or first replica is lost."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest
import ray
from ray import cloudpickle, serve

import serve_grpc
from serve_grpc._generated.replica_pb2 import CallRequest, Error
from serve_grpc._serve.cluster import cluster_secret
from serve_grpc.caller.connection import Connection
from serve_grpc.errors import ReplicaDiedError
from tests.peer.plain_client import PlainClient, error_of
from tests.ray.apps.references import (
    LENGTH,
    SMALL,
    Lending,
    Sender,
    is_known,
    large,
    lending_app,
    value_of,
)
from tests.ray.waiting import eventually

FREED_S = 40.0


@pytest.fixture(scope="module")
def first(deploy):
    return deploy(lending_app(), "lending-lost")


@pytest.fixture
def sender(first):
    sender = Sender.remote(first)
    yield sender
    ray.kill(sender)


def call(handle, method, *args):
    return handle.options(method_name=method).remote(*args).result(timeout_s=30)


def ask(sender, method, *args):
    return ray.get(getattr(sender, method).remote(*args), timeout=60)


def known_at(handle):
    gc.collect()
    return set(call(handle, "known"))


def connections(deployment, application):
    facts = deployment, application
    return [
        thing
        for thing in gc.get_objects()
        if type(thing) is Connection
        and (thing.peer.facts.deployment, thing.peer.facts.application) == facts
        and thing._session is not None
    ]


def cut(application):
    """Break the sessions of this process to the first deployment."""
    for connection in connections("First", application):
        connection._mailbox.post(connection._session.cancel)


# ------------------------------------------------------------ senders that leave


@pytest.mark.parametrize("ends", ["stays", "dies"])
def test_receiver_uses_what_a_borrower_lent_it_after_that_one_let_go(first, sender, key, ends):
    ref = large()
    name = ref.hex()
    assert ask(sender, "call", "keep", key, [ref]) == LENGTH
    eventually(lambda: not ask(sender, "knows", name), timeout_s=FREED_S)
    del ref
    if ends == "dies":
        ray.kill(sender)
    for _ in range(20):
        assert call(first, "use", key) == LENGTH
        gc.collect()
    call(first, "drop", key)
    eventually(lambda: not is_known(name), timeout_s=FREED_S)


def test_task_that_calls_and_ends_lends_all_the_same(first, key):
    @ray.remote(num_cpus=0.01)
    def keep(handle, box):
        return handle.keep.remote(key, box).result(timeout_s=30)

    ref = large()
    name = ref.hex()
    assert ray.get(keep.remote(first, [ref]), timeout=60) == LENGTH
    del ref
    for _ in range(20):
        assert call(first, "use", key) == LENGTH
        gc.collect()
    call(first, "drop", key)
    eventually(lambda: not is_known(name), timeout_s=FREED_S)


def test_object_of_a_call_whose_sender_dies_is_freed(first, sender, tmp_path):
    ref = large()
    name = ref.hex()
    ask(sender, "start", "hang", [ref], str(tmp_path / "hangs"))
    eventually((tmp_path / "hangs").exists)
    del ref
    ray.kill(sender)
    eventually(lambda: not is_known(name), timeout_s=FREED_S)


@pytest.mark.parametrize("way", ["hold", "start"], ids=["read", "not read"])
def test_object_of_a_result_whose_receiver_dies_is_freed(first, sender, way):
    before = known_at(first)
    ask(sender, way, "give")
    eventually(lambda: known_at(first) - before, timeout_s=FREED_S)
    ray.kill(sender)
    eventually(lambda: known_at(first) <= before, timeout_s=FREED_S)


# ------------------------------------------------------------ lost sessions


def test_object_of_a_call_whose_session_is_lost_is_freed(first, tmp_path):
    ref = large()
    name = ref.hex()
    response = first.hang.remote([ref], str(tmp_path / "hangs"))
    del ref
    eventually((tmp_path / "hangs").exists)
    cut("lending-lost")
    with pytest.raises(ReplicaDiedError) as raised:
        response.result(timeout_s=20)
    del response, raised
    gc.collect()
    eventually(lambda: not is_known(name), timeout_s=FREED_S)


def test_code_that_runs_on_after_its_session_was_lost_has_what_it_was_lent(first, tmp_path):
    ref = large()
    name, path = ref.hex(), tmp_path / "read"
    response = first.read_late.remote([ref], str(path))
    del ref
    eventually(tmp_path.joinpath("read.started").exists)
    cut("lending-lost")
    with pytest.raises(ReplicaDiedError) as raised:
        response.result(timeout_s=20)
    del response, raised
    gc.collect()
    assert is_known(name)
    tmp_path.joinpath("read.go").touch()
    eventually(path.exists)
    assert path.read_text() == str(LENGTH)
    eventually(lambda: not is_known(name), timeout_s=FREED_S)


def test_result_outlives_the_session_that_it_came_by(first):
    before = known_at(first)
    responses = [first.give.remote() for _ in range(20)]
    eventually(lambda: all(response._call.done for response in responses))
    cut("lending-lost")
    boxes = [response.result() for response in responses]
    responses.clear()
    eventually(lambda: not connections("First", "lending-lost"))
    for box in boxes:
        assert asyncio.run(value_of(box)) == LENGTH
    assert len(known_at(first) - before) >= 20
    del boxes, box
    eventually(lambda: known_at(first) <= before, timeout_s=FREED_S)


# ------------------------------------------------------------ several replicas


def test_objects_of_calls_that_replicas_turned_away_are_freed(deploy, tmp_path):
    options = {"name": "First", "num_replicas": 2, "max_ongoing_requests": 1, **SMALL}
    crowded = deploy(serve_grpc.deployment(Lending, **options).bind(), "lending-crowded")
    refs = [large() for _ in range(20)]
    names = [ref.hex() for ref in refs]
    hogs = [
        crowded.options(_by_reference=True).hang.remote([ref], str(tmp_path / str(i)))
        for i, ref in enumerate(refs[:2])
    ]
    eventually(lambda: all((tmp_path / str(i)).exists() for i in range(2)))
    responses = [crowded.read.remote([ref]) for ref in refs]
    eventually(lambda: serve_grpc.handle_statistics(crowded).rejections)
    for hog in hogs:
        hog.cancel()
    assert [r.result(timeout_s=30) for r in responses] == [LENGTH] * 20
    del refs, responses, hogs, hog
    gc.collect()
    eventually(lambda: not any(map(is_known, names)), timeout_s=FREED_S)


# ------------------------------------------------------------ the plain door


@pytest.fixture
def plain(first):
    assert call(first, "known") is not None
    (connection,) = connections("First", "lending-lost")
    facts = connection.peer.facts
    client = PlainClient(facts.address, facts.replica_id, cluster_secret())
    yield client
    client.close()


def plain_request(method, *args):
    payload = cloudpickle.dumps((args, {}))
    return CallRequest(method=method, payload=payload, request_serializer="cloudpickle")


def test_plain_door_lets_no_refs_out(first, plain):
    before = known_at(first)
    with pytest.raises(grpc.RpcError) as raised:
        plain.call(plain_request("give"))
    error = error_of(raised.value)
    assert (error.code, error.direction, error.may_have_executed) == (
        Error.SERIALIZATION,
        "response",
        True,
    )
    assert "ObjectRef" in error.message
    with pytest.raises(grpc.RpcError) as raised:
        list(plain.stream(plain_request("give_items", 3)))
    assert error_of(raised.value).code == Error.SERIALIZATION
    eventually(lambda: known_at(first) <= before, timeout_s=FREED_S)


def test_plain_door_tells_of_an_exception_that_holds_a_ref(first, plain):
    before = known_at(first)
    with pytest.raises(grpc.RpcError) as raised:
        plain.call(plain_request("raise_box"))
    error = error_of(raised.value)
    assert error.code == Error.USER_EXCEPTION
    assert error.type_name.endswith("BoxError")
    assert error.pickled == b""
    eventually(lambda: known_at(first) <= before, timeout_s=FREED_S)


# ------------------------------------------------------------ a replica that is gone


def test_caller_lets_go_when_the_replica_is_gone(deploy, key):
    handle = deploy(serve_grpc.deployment(Lending, name="First", **SMALL).bind(), "lending-gone")
    ref = large()
    name = ref.hex()
    assert call(handle, "keep", key, [ref]) == LENGTH
    response = handle.give.remote()
    eventually(lambda: response._call.done)
    del ref
    serve.delete("lending-gone")
    eventually(lambda: not is_known(name), timeout_s=FREED_S)
