"""The context of a gRPC ingress as bytes: every field comes back, and nothing else is read."""

from __future__ import annotations

from typing import Any

import grpc
import msgpack
import pytest
from ray.serve.grpc_util import RayServegRPCContext

from serve_grpc._serve.ingress_context import (
    ingress_context_from_bytes,
    ingress_context_to_bytes,
)


class Servicer:
    """A call's context as gRPC gives it to a servicer."""

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"transport_security_type": [b"ssl"]}

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.NOT_FOUND

    def details(self) -> str:
        return "no such thing"

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return (("some-key", "some value"), ("raw-bin", b"\x00\xff"))

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def peer_identities(self) -> list[bytes]:
        return [b"someone"]

    def peer_identity_key(self) -> str:
        return "x509_common_name"

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("after", "all"),)


@pytest.fixture
def context() -> Any:
    return RayServegRPCContext(Servicer())


def test_every_field_comes_back(context: Any) -> None:
    context.set_compression(grpc.Compression.Gzip)
    back = ingress_context_from_bytes(ingress_context_to_bytes(context))
    assert type(back) is RayServegRPCContext
    assert vars(back) == vars(context)
    assert back.code() is grpc.StatusCode.NOT_FOUND
    assert back.invocation_metadata() == context.invocation_metadata()
    assert all(isinstance(pair, tuple) for pair in back.invocation_metadata())


def test_what_is_not_plain_data_is_refused_where_it_is_sent(context: Any) -> None:
    context._details = object()
    with pytest.raises(TypeError, match="a gRPC context with a object cannot be sent"):
        ingress_context_to_bytes(context)


@pytest.mark.parametrize(
    "fields",
    [
        ["_code"],
        {"code": 1},  # a method's name
        {"__class__": 1},
        {1: 2},
        {"_code": msgpack.ExtType(9, b"")},
        {"_code": msgpack.ExtType(1, b"StatusCode.NO_SUCH")},
        {"_code": msgpack.ExtType(1, b"os.system")},
    ],
    ids=str,
)
def test_bytes_of_another_kind_are_refused(fields: Any) -> None:
    with pytest.raises(Exception, match=r".") as raised:
        ingress_context_from_bytes(msgpack.packb(fields, strict_types=False, strict_map_key=False))
    assert isinstance(raised.value, (ValueError, KeyError, AttributeError, TypeError))
