"""Who is measured against whom: the names, and what they mean.

A name is what tables and plots show: "by reference", "serve: orjson", "serve_grpc: pickle",
"bare unary", "bare stream". With " (4 callers)" behind it the same load comes from four caller
replicas. Pure: handles are made in `sides.py`, the bare ones in `floors.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = [
    "BARE_STREAM",
    "BARE_UNARY",
    "BY_REFERENCE",
    "OURS",
    "SERIALIZERS",
    "Contender",
    "Side",
    "ours",
    "parse",
    "serves",
]

Transport = Literal["by reference", "serve", "serve_grpc", "bare unary", "bare stream"]

Side = Literal["serve", "serve_grpc"]
"""Whose processes take part: they are apart, see `sides.py`."""

SERIALIZERS = ("cloudpickle", "pickle", "msgpack", "orjson")
BY_REFERENCE = "by reference"
"""Ray's own actor call, what a handle does by default."""
BARE_UNARY = "bare unary"
"""Floor: a unary echo over grpc.aio, pickled, without Serve."""
BARE_STREAM = "bare stream"
"""Floor: one bidirectional stream of batched frames over grpc.aio, pickled, without Serve."""
OURS = "serve_grpc: cloudpickle"
"""Ours as it comes: the default serializer."""

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
        return "serve_grpc" if self.transport == "serve_grpc" else "serve"


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


def ours(*serializers: str) -> tuple[str, ...]:
    """Names of serve_grpc with these serializers; with all of them if none is given."""
    return tuple(f"serve_grpc: {name}" for name in serializers or SERIALIZERS)
