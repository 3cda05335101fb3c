"""The user's exception, as Ray presents it: a `RayTaskError` that is also of the user's type.

To build one runs code of the user's: the import of its module, constructors, whatever its pickle
says. Nothing of that happens on the loop that carries sessions: it hands on a `RemoteException`.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import os
import pickle
import traceback
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayError, RayTaskError

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.cluster import node_address
from serve_grpc._serve.references import InBand, cloudpickled
from serve_grpc.config import LOGGER_NAME
from serve_grpc.errors import ReplicaError, ServeGrpcError
from serve_grpc.foreign import is_interrupt, name_of, text_of
from serve_grpc.payload import joined, refs_of
from serve_grpc.protocol.status import valid_text

__all__ = ["RemoteException", "message_from_exception"]

logger = logging.getLogger(LOGGER_NAME)


def message_from_exception(
    error: BaseException, function_name: str, *, may_pickle: bool, refs: list[Any]
) -> Error:
    """What a replica sends when the user's code raised `error`.

    Args:
        error: The exception.
        function_name: Where it was raised, as Ray prints it.
        may_pickle: Whether the exception itself goes along; else only what is told of it.
        refs: Gets the ObjectRefs that the pickled exception names.
    """
    if isinstance(error, asyncio.CancelledError):
        # Raised by the handler on its own: the error of this call, not a cancel of the caller's.
        code, text = Error.CANCELLED, "the handler raised CancelledError"
    else:
        code, text = Error.USER_EXCEPTION, ""
    # Of a call that the handler made in turn, the cause is told on, as Ray does: the type stays.
    cause = getattr(error, "cause", None) if isinstance(error, RayTaskError) else None
    told = cause if isinstance(cause, BaseException) else error
    kind = type(told)
    return Error(
        code=code,
        type_name=f"{kind.__module__}.{kind.__qualname__}",
        message=valid_text(text or text_of(told)),
        traceback=valid_text(_traceback_of(error)),
        pickled=_pickle(told, refs) if may_pickle else b"",
        may_have_executed=True,
        function_name=function_name,
        pid=os.getpid(),
        node_ip=node_address(),
    )


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException as reason:
        if is_interrupt(reason):
            raise
        return f"(its traceback cannot be had: {name_of(reason)})"


def _pickle(error: BaseException, refs: list[Any]) -> bytes:
    # SystemExit and its like would end the caller; they travel as text.
    if not isinstance(error, Exception):
        return b""
    try:
        payload = cloudpickled(error)
        pickled = joined(payload)
        pickle.loads(pickled)  # many exceptions pickle, but cannot be built again
    except BaseException as reason:
        if is_interrupt(reason):
            raise
        logger.warning("%s cannot be pickled, it travels as text: %s", type(error), text_of(reason))
        return b""
    refs.extend(refs_of(payload))
    return pickled


class RemoteException:
    """An exception of the user's code, as its replica told of it; nothing of it is loaded yet.

    Args:
        message: As it came.
        request_id: Of the call.
        may_unpickle: Whether an exception that came pickled may be loaded.
        refs: What it names, held until it is loaded.
    """

    __slots__ = ("_may_unpickle", "_message", "_refs", "_request_id")

    def __init__(
        self, message: Error, *, request_id: str, may_unpickle: bool, refs: Sequence[Any] = ()
    ) -> None:
        self._refs = refs
        self._message = message
        self._request_id = request_id
        self._may_unpickle = may_unpickle

    def __repr__(self) -> str:
        return f"<RemoteException {self._message.type_name}>"

    def as_told(self) -> tuple[Error, Sequence[Any]]:
        """The message as it came, and what it names: for who passes it on unopened."""
        return self._message, self._refs

    def load(self) -> RayTaskError:
        """What the caller raises for it, a new one each time.

        May take as long as an import does. Whatever the user's code raises meanwhile, what the
        replica told of the exception is in the result; only Ctrl-C is let through.
        """
        message = self._message
        why = "was not sent: it cannot be pickled, or may not be there"
        if message.pickled and not self._may_unpickle:
            why = "came pickled, and pickle is refused here"
        elif message.pickled:
            try:
                cause = pickle.loads(message.pickled)
                if isinstance(cause, Exception):
                    return self._task_error(cause)
            except BaseException as reason:
                if is_interrupt(reason):
                    raise
                text = f"{name_of(reason)}: {text_of(reason)}"
                why = f"cannot be unpickled here ({text})"
        return self._task_error(self._as_text(why))

    def _task_error(self, cause: Exception) -> RayTaskError:
        message = self._message
        if isinstance(cause, (StopIteration, StopAsyncIteration)):
            # Raised where a loop asks for an item, it would end the loop as if all were there.
            stop, cause = cause, RuntimeError(f"the handler raised {type(cause).__name__}")
            cause.__cause__ = stop
        with InBand():  # it pickles the cause to see whether that is possible
            task_error = RayTaskError(
                message.function_name,
                message.traceback,
                cause,
                proctitle=message.function_name,
                pid=message.pid,
                ip=message.node_ip,
            )
        raisable = task_error.as_instanceof_cause()
        if isinstance(raisable, ServeGrpcError):
            # Of the user's code, be it of a call that the handler made in turn or a class of its
            # own. `cause` tells of that one; this call did execute.
            raisable.__dict__["may_have_executed"] = True
        return raisable

    def _as_text(self, why: str) -> Exception:
        message = self._message
        module, _, name = message.type_name.partition(".")
        if module == "builtins":
            kind = getattr(builtins, name, None)
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                return ReplicaError(
                    f"the handler raised {message.type_name}: {message.message}",
                    request_id=self._request_id,
                    may_have_executed=True,
                )
            try:
                return kind(message.message)
            except TypeError:
                pass  # one of the few that are not made of a text
        text = f"{message.type_name}: {message.message} (the exception itself {why})"
        as_text: Exception = RayError(text)
        return as_text
