"""Code that is not ours and runs inside ours: hooks, span processors, log handlers, pickles.

A pickle runs whatever its classes say, down to the import of a module that is a program and exits;
an exception's `__str__` is code as well. Whatever they raise concerns one call at most, and must
not end the event loop or the thread it is raised in. The user's handlers, whose errors are an
answer, do not run here.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Callable
from typing import Any

from serve_grpc.config import LOGGER_NAME

__all__ = ["another", "is_interrupt", "log_failure", "name_of", "run_foreign", "text_of"]

logger = logging.getLogger(LOGGER_NAME)


def run_foreign(what: str, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Call `function`; what it raises, SystemExit too, is logged.

    Args:
        what: It did not do, for the log: "end a span".
        function, args, kwargs: What to call.
    """
    try:
        function(*args, **kwargs)
    except BaseException:  # SystemExit of a hook would end the loop, and with it every call on it
        log_failure(what)


def log_failure(what: str) -> None:
    """Log the exception that is being handled, of code that was to do `what`."""
    with contextlib.suppress(BaseException):  # the log's handlers are foreign, too
        logger.exception("failed to %s", what)


def is_interrupt(error: BaseException) -> bool:
    """Whether the user of a program may have pressed Ctrl-C, which nobody else may answer.

    Python raises it in the main thread, between any two steps. There, a KeyboardInterrupt that a
    pickle raised cannot be told from it; it fails no more than its one call either.
    """
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
    )


def name_of(error: BaseException) -> str:
    """Name of its class; not by way of the metaclass, which may be the user's."""
    # `type(error).__name__` asks the metaclass first, whose property of that name may raise.
    name: str = type.__dict__["__name__"].__get__(type(error))
    return name


def text_of(error: BaseException) -> str:
    """`str(error)`, or what stands for it where that fails."""
    try:
        return str(error)
    except BaseException as reason:
        if is_interrupt(reason):
            raise
        return f"(its text cannot be had: {name_of(reason)})"


def another(error: BaseException) -> BaseException:
    """One like `error`, so that who raises it leaves no trace on the one that is kept.

    `error` itself if it cannot be copied: some constructors make another error of its arguments.
    """
    try:
        copied = copy.copy(error)
        if type(copied) is not type(error) or copied.args != error.args:
            return error
        vars(copied).update(vars(error))  # some leave out what was set later, as notes are
    except BaseException as reason:
        if is_interrupt(reason):
            raise
        return error
    # `copy.copy` goes by `BaseException.__reduce__`: class, `args`, `__dict__`, and none of these.
    copied.__traceback__, copied.__cause__ = error.__traceback__, error.__cause__
    copied.__context__ = error.__context__
    copied.__suppress_context__ = error.__suppress_context__
    return copied
