"""Whether the log takes debug lines, for places where each call comes by.

`Logger.isEnabledFor` runs Python code of its own each time, of which a call would pay several. It
keeps its answers in a dict that every change of a level empties; here only that dict is looked at.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from serve_grpc.config import LOGGER_NAME

__all__ = ["is_debugged"]

# No public name leads to that dict. Where a Python has none, or it holds no answer yet, the line is
# written, and the logger decides.
_answers: dict[int, bool] = getattr(logging.getLogger(LOGGER_NAME), "_cache", {})

_look: Callable[[int, bool], bool] = _answers.get
is_debugged: Callable[[], bool] = functools.partial(_look, logging.DEBUG, True)
"""False if a debug line would go nowhere. True if it may not: the logger has the last word."""
