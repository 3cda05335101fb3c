"""What may come out of code of the user's that runs inside ours.

A pickle runs whatever its classes say, down to the import of a module that is a program and exits;
an exception's `__str__` is code as well. Whatever they raise concerns one call, and must not end
the event loop or the thread it is raised in.
"""

from __future__ import annotations

import copy
import threading

__all__ = ["another", "is_interrupt", "text_of"]


def is_interrupt(error: BaseException) -> bool:
    """Whether the user of a program may have pressed Ctrl-C, which nobody else may answer.

    Python raises it in the main thread, between any two steps. There, a KeyboardInterrupt that a
    pickle raised cannot be told from it; it fails no more than its one call either.
    """
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
    )


def text_of(error: BaseException) -> str:
    """`str(error)`, or what stands for it where that fails."""
    try:
        return str(error)
    except BaseException as reason:
        if is_interrupt(reason):
            raise
        return f"(its text cannot be had: {type(reason).__name__})"


def another(error: BaseException) -> BaseException:
    """One like `error`, so that who raises it leaves no trace on the one that is kept.

    `error` itself if it cannot be copied.
    """
    try:
        copied = copy.copy(error)
    except BaseException as reason:
        if is_interrupt(reason):
            raise
        return error
    if type(copied) is not type(error):
        return error
    copied.__traceback__, copied.__cause__ = error.__traceback__, error.__cause__
    copied.__context__ = error.__context__
    copied.__suppress_context__ = error.__suppress_context__
    return copied
