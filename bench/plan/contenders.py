"""Who is measured against whom: the names, and what they mean.

A name is what tables and plots show: "by reference", "serve: orjson", "serve_grpc: pickle" (over
the local lane, as all is on one node), "serve_grpc over gRPC: pickle", "bare unary", "bare stream".
With " (4 callers)" behind it the same load comes from four caller replicas. Pure: handles are made
in `on_serve/sides.py`, the bare ones in `load/floors.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = [
    "BARE_STREAM",
    "BARE_UNARY",
    "BY_REFERENCE",
    "GRPC_ONLY",
    "OURS",
    "OVER_GRPC",
    "SERIALIZERS",
    "Carrier",
    "Contender",
    "Side",
    "ours",
    "over_grpc",
    "parse",
    "serves",
]

Transport = Literal[
    "by reference", "serve", "serve_grpc", "serve_grpc over gRPC", "bare unary", "bare stream"
]

Side = Literal["serve", "serve_grpc"]
"""Whose processes take part: they are apart, see `on_serve/sides.py`."""

Carrier = Literal["", "local", "grpc"]
"""What carries the sessions of serve_grpc, in the words of its statistics; "" for all others."""

GRPC_ONLY = {"SERVE_GRPC_LOCAL": "0"}
"""In the environment of callers that are to use gRPC: a process has one carrier for all calls."""

SERIALIZERS = ("cloudpickle", "pickle", "msgpack", "orjson")
BY_REFERENCE = "by reference"
"""Ray's own actor call, what a handle does by default."""
BARE_UNARY = "bare unary"
"""Floor: a unary echo over grpc.aio, pickled, without Serve."""
BARE_STREAM = "bare stream"
"""Floor: one bidirectional stream of batched frames over grpc.aio, pickled, without Serve."""
OURS = "serve_grpc: cloudpickle"
"""Ours as it comes: the default serializer, and the local lane."""
OVER_GRPC = "serve_grpc over gRPC: cloudpickle"
"""The same without the lane, as it is between two nodes."""

_NAME = re.compile(
    r"(?P<transport>[^:(]+?)(: (?P<serializer>\w+))?( \((?P<callers>\d+) callers\))?"
)


@dataclass(frozen=True)
class Contender:
    """A parsed name.

    Attributes:
        transport: How a call travels.
        serializer: Of arguments and results; empty where there is no choice.
        callers: How many caller replicas share the load; None leaves it to the workload.
    """

    transport: Transport
    serializer: str = ""
    callers: int | None = None

    @property
    def is_floor(self) -> bool:
        """Whether it runs without Serve."""
        return self.transport in (BARE_UNARY, BARE_STREAM)

    @property
    def side(self) -> Side:
        """Ours, or that of all who do without serve_grpc."""
        return "serve_grpc" if self.transport.startswith("serve_grpc") else "serve"

    @property
    def carrier(self) -> Carrier:
        """What it says that it travels over, if it is ours."""
        if self.side == "serve":
            return ""
        return "local" if self.transport == "serve_grpc" else "grpc"


def parse(name: str) -> Contender:
    """Read a contender's name.

    Raises:
        ValueError: Nobody is called that.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["transport"] not in get_args(Transport):
        raise ValueError(f"no contender is called {name!r}")
    callers = match["callers"]
    return Contender(
        match["transport"],  # type: ignore[arg-type]
        match["serializer"] or "",
        int(callers) if callers else None,
    )


def serves(*serializers: str) -> tuple[str, ...]:
    """Names of Serve's own gRPC with these serializers; with all of them if none is given."""
    return tuple(f"serve: {name}" for name in serializers or SERIALIZERS)


def over_grpc(name: str) -> str:
    """The name of the contender that differs from this one of ours in the carrier only."""
    transport, colon, rest = name.partition(":")
    return f"{transport} over gRPC{colon}{rest}"


def ours(*serializers: str) -> tuple[str, ...]:
    """Names of serve_grpc with these serializers; with all of them if none is given."""
    return tuple(f"serve_grpc: {name}" for name in serializers or SERIALIZERS)
