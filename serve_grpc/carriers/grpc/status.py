"""How a gRPC call of ours ends with a failure: a status, and at most so much text.

gRPC takes about 8 KiB of metadata; between 8 and 16 KiB it refuses them at random, more it refuses
always, and the peer then sees RESOURCE_EXHAUSTED instead of the status. Status details travel
percent-encoded, three bytes for each byte that is not printable ASCII, and binary metadata in
base64. Invariant: no call is aborted in another way than this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from grpc import StatusCode

from serve_grpc.protocol.status import valid_text

__all__ = ["MAX_DETAILS_BYTES", "abort", "fitting_details"]

MAX_DETAILS_BYTES = 1024
"""As encoded. The largest error beside it (`protocol.status.shortened`) is 5.3 KiB in base64."""


def fitting_details(text: str) -> str:
    """As much of `text` as fits, in whole characters, as details of a status."""
    text = valid_text(text[:MAX_DETAILS_BYTES])
    left = MAX_DETAILS_BYTES
    for index, character in enumerate(text):
        is_plain = " " <= character <= "~" and character != "%"
        left -= 1 if is_plain else 3 * len(character.encode())
        if left < 0:
            return text[:index]
    return text


async def abort(
    context: Any, code: StatusCode, text: str, trailer: Sequence[tuple[str, bytes]] = ()
) -> NoReturn:
    """End a call; raises what gRPC raises for it.

    Args:
        context: gRPC's, of the call.
        code: Not OK.
        text: For the status details; cut to `MAX_DETAILS_BYTES`.
        trailer: Metadata that go with it.
    """
    await context.abort(code, fitting_details(text), trailing_metadata=tuple(trailer))
    raise AssertionError("abort raises")
