"""Code in a thread holds the only slot until it is out, whatever ended its call."""

from __future__ import annotations

import json

import grpc
import pytest
import ray
from ray.serve.exceptions import RequestCancelledError

from serve_grpc._generated.replica_pb2 import CallRequest
from serve_grpc.errors import DeadlineExceededError
from tests.peer.plain_client import CALL, PlainClient
from tests.ray.apps.slots import slots_app
from tests.ray.listing import infos_of
from tests.ray.waiting import eventually


@pytest.fixture(scope="module")
def handle(deploy):
    return deploy(slots_app(), "slots")


class Held:
    """A call whose code is in its thread; `go` lets it leave."""

    def __init__(self, handle, directory, method):
        self.handle = handle
        self.directory = directory
        self.method = method
        self.arguments = (str(directory), "first")

    def begin(self, handle):
        options = handle.options(method_name=self.method, stream=self.method == "items")
        return options.remote(*self.arguments)

    def wait_inside(self):
        eventually(lambda: (self.directory / "first.in").exists())

    def is_out(self):
        return (self.directory / "first.out").exists()


def result(response, method):
    return next(response) if method == "items" else response.result(timeout_s=20)


def cancelled(held):
    response = held.begin(held.handle)
    held.wait_inside()
    response.cancel()
    with pytest.raises(RequestCancelledError):
        result(response, held.method)


def too_late(held):
    response = held.begin(held.handle.options(timeout_s=1))
    with pytest.raises(DeadlineExceededError):
        result(response, held.method)
    held.wait_inside()


def killed(held):
    def call(handle, method, *arguments):
        options = handle.options(method_name=method, stream=method == "items")
        response = options.remote(*arguments)
        return next(response) if method == "items" else response.result()

    class Caller:
        def call(self, *arguments):
            return call(*arguments)

    caller = ray.remote(num_cpus=0.01)(Caller).remote()
    caller.call.remote(held.handle, held.method, *held.arguments)
    held.wait_inside()
    ray.kill(caller)


def left_the_plain_door(held):
    from serve_grpc._serve.cluster import cluster_secret

    (info,) = infos_of(held.handle)
    address = info.replica_metadata["serve_grpc"]["address"]
    client = PlainClient(address, info.replica_id.unique_id, cluster_secret())
    try:
        payload = json.dumps([list(held.arguments), {}]).encode()
        request = CallRequest(method=held.method, payload=payload, request_serializer="orjson")
        if held.method == "items":
            call = client.stream(request)
        else:
            metadata = client.proof(CALL, request.SerializeToString())
            call = client.stub.Call.future(request, timeout=20, metadata=metadata)
        held.wait_inside()
        call.cancel()
        assert call.code() is grpc.StatusCode.CANCELLED
    finally:
        client.close()


@pytest.mark.parametrize("end", [cancelled, too_late, killed, left_the_plain_door])
@pytest.mark.parametrize("method", ["unary", "items", "leaves"])
def test_the_slot_is_free_when_the_thread_is_out(handle, tmp_path, method, end):
    held = Held(handle, tmp_path, method)
    end(held)  # its caller, if there is one, was told
    assert not held.is_out()
    with pytest.raises(DeadlineExceededError) as raised:
        handle.options(timeout_s=0.3).unary.remote(str(tmp_path), "second").result(timeout_s=20)
    assert not raised.value.may_have_executed
    assert not (tmp_path / "second.in").exists()
    third = handle.unary.remote(str(tmp_path), "third")
    (tmp_path / "first.go").touch()
    (tmp_path / "third.go").touch()
    assert third.result(timeout_s=20) == "third"
    assert held.is_out()
    assert handle.most_at_once.remote().result(timeout_s=20) == 1


def test_a_generator_that_waits_for_its_consumer_ends_with_its_call(handle, tmp_path):
    stream = handle.options(stream=True).refilled.remote(str(tmp_path), "stream")
    assert len(next(stream)) == 100_000
    eventually(lambda: (tmp_path / "stream.in").exists())
    stream.cancel()
    assert handle.most_at_once.remote().result(timeout_s=20) <= 1
    assert (tmp_path / "stream.out").exists()
