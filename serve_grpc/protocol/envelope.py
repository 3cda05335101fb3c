"""The part of a request that many requests share.

A session sends it once, as a template, and names it by a number from then on. Both sides keep it as
this tuple of plain values: reading a field of a generated message makes a new string every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from serve_grpc._generated.replica_pb2 import RequestContext
from serve_grpc.payload import Payload

__all__ = ["Envelope", "InputPlace", "RequestFields"]


class Envelope(NamedTuple):
    """Fields of the `Template` message beside its number, in its words."""

    method: str
    request_serializer: str
    response_serializer: str
    stream: bool
    route: str
    app_name: str
    has_inputs: bool = False


class InputPlace(NamedTuple):
    """Where a stream stands among the arguments; `position` counts only if `name` is empty."""

    position: int
    name: str


@dataclass(slots=True)
class RequestFields:
    """What one request says beside its envelope."""

    envelope: Envelope
    payload: Payload
    request_id: str
    timeout_ms: int = 0
    multiplexed_model_id: str = ""
    session_id: str = ""
    credit_items: int = 0
    credit_bytes: int = 0
    client: str = ""
    reserved_slot: str = ""
    context: RequestContext | None = None
    inputs: tuple[InputPlace, ...] = ()
