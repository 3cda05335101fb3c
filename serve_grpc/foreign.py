"""Runs foreign code on a path that must be walked to its end: hooks, span processors, log handlers.

What they raise is told, and ends nothing of ours. Only for what is called and returns; the user's
handlers, whose errors are an answer, do not run here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from serve_grpc.config import LOGGER_NAME

__all__ = ["run_foreign"]

logger = logging.getLogger(LOGGER_NAME)


def run_foreign(what: str, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Call `function`; what it raises, SystemExit too, is logged.

    Args:
        what: It did not do, for the log: "end a span".
        function, args, kwargs: What to call.
    """
    try:
        function(*args, **kwargs)
    except BaseException:
        with contextlib.suppress(BaseException):  # the log's handlers are foreign, too
            logger.exception("failed to %s", what)
