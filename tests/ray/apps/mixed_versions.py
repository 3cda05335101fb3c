"""Replicas of a fleet in which some speak a newer protocol, or say things nobody understands."""

from __future__ import annotations

import os
from typing import Any

import serve_grpc
from serve_grpc._serve.replica_facts import ENDPOINT_KEY, Endpoint
from serve_grpc.carriers.local import framing
from serve_grpc.protocol import handshake
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.replica import ReplicaSession

__all__ = ["MIXED", "UNKNOWN_FIELDS", "Mixed"]

# Fields 1000 to 1003, one of each wire type that protobuf has.
UNKNOWN_FIELDS = (
    b"\xc0\x3e\x96\x01"  # a varint
    b"\xc9\x3e12345678"  # 64 bits
    b"\xd2\x3e\x05frame"  # bytes
    b"\xdd\x3e1234"  # 32 bits
)


class Mixed:
    """The constructor runs before the endpoint starts, in a process of the replica's own.

    Args:
        path: A directory in which replicas take numbers.
        kinds: What each number is: "old", "new" (speaks a newer version too, and says things of
            it), "only new" (no longer speaks this one), or "no streams" (of a release that took no
            streams as arguments). On the local lane there is one version at a time: new ones speak
            another.
    """

    def __init__(self, path: str, kinds: list[str]) -> None:
        self.kind = kinds[_take_number(path) % len(kinds)]
        if self.kind == "no streams":
            _take_no_streams()
        elif self.kind != "old":
            handshake.MAX_VERSION += 1
            framing.VERSION += 1
            _say_unknown_things()
        if self.kind == "only new":
            handshake.MIN_VERSION = handshake.MAX_VERSION

    async def __call__(self, value: Any) -> list[Any]:
        return [self.kind, value]

    async def total(self, numbers: Any) -> list[Any]:
        """Of a stream."""
        return [self.kind, sum([number async for number in numbers])]


def _take_number(path: str) -> int:
    number = 0
    while True:
        try:
            os.close(os.open(f"{path}/{number}", os.O_CREAT | os.O_EXCL))
            return number
        except FileExistsError:
            number += 1


def _say_unknown_things() -> None:
    take = Outbox.take

    def take_more(outbox: Outbox[Any]) -> bytes:
        message = take(outbox)
        return message + UNKNOWN_FIELDS if message else message

    Outbox.take = take_more  # type: ignore[method-assign]


def _take_no_streams() -> None:
    """As a release before: neither what it publishes nor its welcome says anything of them."""
    published, init = Endpoint.as_metadata, ReplicaSession.__init__

    def published_without(endpoint: Endpoint) -> dict[str, Any]:
        metadata = published(endpoint)
        del metadata[ENDPOINT_KEY]["inputs"]
        return metadata

    def without(session: ReplicaSession, *args: Any, **kwargs: Any) -> None:
        init(session, *args, **{**kwargs, "input_credit": None})

    Endpoint.as_metadata = published_without  # type: ignore[method-assign]
    ReplicaSession.__init__ = without  # type: ignore[method-assign]


MIXED = serve_grpc.deployment(
    ray_actor_options={"num_cpus": 0.01}, graceful_shutdown_wait_loop_s=0.1, max_ongoing_requests=50
)(Mixed)
"""To be run with `.options(num_replicas=..., ...)`."""
