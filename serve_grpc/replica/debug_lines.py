"""Debug lines by which an operator follows one request through a replica, by its request id.

The caller writes the same id on its own lines, so one search finds both halves of a call. Whether
anybody listens is asked once for a message (`debugging.is_debugged`) and kept on each of its
requests (`Invocation.is_followed`): where nobody does, a line costs one look at that field.
"""

from __future__ import annotations

import logging

from serve_grpc.config import LOGGER_NAME
from serve_grpc.foreign import run_foreign

__all__ = ["follow"]

logger = logging.getLogger(LOGGER_NAME)


def follow(request_id: str, what: str, *args: object) -> None:
    """Write that this happened to a request. Only if it is followed.

    Args:
        request_id: Of the request.
        what: Happened to it, in the words of `logging`'s templates: "started after %d ms".
        args: What the template names.
    """
    # Handlers may be the user's. Lines are written where slots and sessions are being changed.
    run_foreign("log", logger.debug, "request %s: " + what, request_id, *args)
