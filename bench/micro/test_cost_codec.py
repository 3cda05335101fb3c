"""Codec: serializers there and back, and batches of the wire as bytes.

What the wire costs is also in the times of the session machines, which encode and decode.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.micro.pair import BATCH, ENVELOPE, REQUEST_ID
from serve_grpc._generated.replica_pb2 import CallerBatch, ReplicaBatch, Reply
from serve_grpc.protocol.wire import FRAGMENT_BYTES, decode_batch, encode_fragment
from serve_grpc.serialization import get_serializer

SERIALIZERS = ["cloudpickle", "pickle", "msgpack", "orjson"]
ARGS = ("x" * 100,)


@pytest.mark.parametrize("name", SERIALIZERS)
def test_arguments_to_bytes(cost: Any, name: str) -> None:
    dump = get_serializer(name).dump_request
    assert cost(dump, ARGS, {}, part="codec", side="caller")


@pytest.mark.parametrize("name", SERIALIZERS)
def test_bytes_to_arguments(cost: Any, name: str) -> None:
    serializer = get_serializer(name)
    payload = serializer.dump_request(ARGS, {})
    assert cost(serializer.load_request, payload, part="codec", side="replica") == (ARGS, {})


@pytest.mark.parametrize("name", SERIALIZERS)
def test_result_to_bytes(cost: Any, name: str) -> None:
    assert cost(get_serializer(name).dump_response, *ARGS, part="codec", side="replica")


@pytest.mark.parametrize("name", SERIALIZERS)
def test_bytes_to_result(cost: Any, name: str) -> None:
    serializer = get_serializer(name)
    payload = serializer.dump_response(*ARGS)
    assert cost(serializer.load_response, payload, part="codec", side="caller") == ARGS[0]


def requests() -> CallerBatch:
    batch = CallerBatch()
    batch.templates.add(number=1, **ENVELOPE._asdict())
    for number in range(1, BATCH + 1):
        batch.requests.add(id=number, template=1, request_id=REQUEST_ID, payload=b"x" * 100)
    return batch


def replies() -> ReplicaBatch:
    batch = ReplicaBatch(ongoing=1)
    for number in range(1, BATCH + 1):
        batch.replies.add(id=number, kind=Reply.RESULT, payload=b"x" * 100)
    return batch


@pytest.mark.parametrize(
    ("make", "side"),
    [
        pytest.param(requests, "caller", id="requests"),
        pytest.param(replies, "replica", id="replies"),
    ],
)
def test_batch_to_bytes(cost: Any, make: Any, side: str) -> None:
    assert cost(make().SerializeToString, part="codec", side=side, calls=BATCH)


@pytest.mark.parametrize(
    ("make", "side"),
    [
        pytest.param(requests, "replica", id="requests"),
        pytest.param(replies, "caller", id="replies"),
    ],
)
def test_bytes_to_batch(cost: Any, make: Any, side: str) -> None:
    batch = make()
    data = batch.SerializeToString()
    decoded, _ = cost(decode_batch, type(batch), data, part="codec", side=side, calls=BATCH)
    assert decoded == batch


def test_fragment_of_a_megabyte_to_bytes(cost: Any) -> None:
    data = memoryview(bytes(FRAGMENT_BYTES))
    assert cost(lambda: b"".join(encode_fragment(1, data)), part="codec", side="both")


def test_bytes_to_fragment_of_a_megabyte(cost: Any) -> None:
    message = b"".join(encode_fragment(1, bytes(FRAGMENT_BYTES)))
    _, ((call_id, part, _),) = cost(decode_batch, CallerBatch, message, part="codec", side="both")
    assert (call_id, len(part)) == (1, FRAGMENT_BYTES)
