"""The user's exception, as Ray presents it: a `RayTaskError` that is also of the user's type."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import traceback
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RequestCancelledError

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.cluster import node_address
from serve_grpc._serve.references import InBand, cloudpickled
from serve_grpc.config import LOGGER_NAME
from serve_grpc.errors import ReplicaError, ServeGrpcError
from serve_grpc.payload import joined, refs_of
from serve_grpc.protocol.status import valid_text

__all__ = ["message_from_exception", "raisable_from_message"]

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
    told = error.cause if isinstance(error, RayTaskError) else error
    kind = type(told)
    return Error(
        code=code,
        type_name=f"{kind.__module__}.{kind.__qualname__}",
        message=valid_text(text or _text_of(told)),
        traceback=valid_text(
            "".join(traceback.format_exception(type(error), error, error.__traceback__))
        ),
        pickled=_pickle(told, refs) if may_pickle else b"",
        may_have_executed=True,
        function_name=function_name,
        pid=os.getpid(),
        node_ip=node_address(),
    )


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as reason:
        return f"(its text cannot be had: {type(reason).__name__})"


def _pickle(error: BaseException, refs: list[Any]) -> bytes:
    # SystemExit and its like would end the caller; they travel as text.
    if not isinstance(error, Exception):
        return b""
    try:
        payload = cloudpickled(error)
        pickled = joined(payload)
        pickle.loads(pickled)  # many exceptions pickle, but cannot be built again
    except Exception as reason:
        logger.warning("%s cannot be pickled, it travels as text: %s", type(error), reason)
        return b""
    refs.extend(refs_of(payload))
    return pickled


def raisable_from_message(message: Error, *, request_id: str, may_unpickle: bool) -> BaseException:
    """What the caller raises for an exception of the user's code.

    Args:
        message: As it came.
        request_id: Of the call.
        may_unpickle: Whether an exception that came pickled is loaded.
    """
    if message.code == Error.CANCELLED:
        cancelled: BaseException = RequestCancelledError(request_id)
        return cancelled
    if message.pickled and not may_unpickle:
        cause = _as_text(message, request_id, "came pickled, and pickle is refused here")
    else:
        cause = _unpickle(message, request_id)
    with InBand():  # it pickles the cause to see whether that is possible
        task_error = RayTaskError(
            message.function_name,
            message.traceback,
            cause,
            proctitle=message.function_name,
            pid=message.pid,
            ip=message.node_ip,
        )
    raisable: BaseException = task_error.as_instanceof_cause()
    if isinstance(raisable, ServeGrpcError):
        # Of a call that the handler made in turn. `cause` tells of that one; this one did execute.
        raisable.may_have_executed = True
    return raisable


def _unpickle(message: Error, request_id: str) -> Exception:
    if message.pickled:
        try:
            cause = pickle.loads(message.pickled)
        except Exception as reason:
            return _as_text(message, request_id, f"cannot be unpickled here ({reason})")
        if isinstance(cause, Exception):
            return cause
    return _as_text(message, request_id, "was not sent: it cannot be pickled, or may not be there")


def _as_text(message: Error, request_id: str, why: str) -> Exception:
    if message.type_name.startswith("builtins.") and not message.pickled:
        return ReplicaError(
            f"the handler raised {message.type_name}: {message.message}",
            request_id=request_id,
            may_have_executed=True,
        )
    text = f"{message.type_name}: {message.message} (the exception itself {why})"
    as_text: Exception = RayError(text)
    return as_text
