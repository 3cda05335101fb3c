"""The part of a request that many requests share.

A session sends it once, as a template, and names it by a number from then on. Both sides keep it as
this tuple of plain values: reading a field of a generated message makes a new string every time.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Envelope"]


class Envelope(NamedTuple):
    """Fields of the `Template` message beside its number, in its words."""

    method: str
    request_serializer: str
    response_serializer: str
    stream: bool
    route: str
    app_name: str
