"""The user's exception on its way to the caller: same type, same fields, remote traceback.

Whatever the exception is like, there is a message for it, and something to raise for the message.
"""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import RequestCancelledError

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import message_from_exception, raisable_from_message


class WithFields(Exception):
    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.code = code


class CannotBeBuiltAgain(Exception):
    def __init__(self, text: str, *, code: int) -> None:
        super().__init__(text)
        self.code = code


class HoldsALock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class CannotBeShown(Exception):
    def __str__(self) -> str:
        raise ValueError("no text for you")

    __repr__ = __str__


def raised(error: BaseException) -> BaseException:
    """`error` with a traceback that names this function."""
    try:
        raise error
    except BaseException as caught:
        return caught


def there_and_back(error: BaseException) -> BaseException:
    name = "ServeReplica:app:Deployment.method"
    message = message_from_exception(raised(error), name, may_pickle=True, refs=[])
    return raise_of(Error.FromString(message.SerializeToString()))


def raise_of(message: Error, *, may_unpickle: bool = True) -> BaseException:
    return raisable_from_message(message, request_id="req", may_unpickle=may_unpickle)


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyError("k"), WithFields("mine", 7), OSError(2, "no file")]
)
def test_an_exception_arrives_as_its_own_type_and_as_a_task_error(error: Exception) -> None:
    back = there_and_back(error)
    assert isinstance(back, type(error))
    assert isinstance(back, RayTaskError)
    assert back.cause.args == error.args


def test_fields_of_an_exception_arrive() -> None:
    back = there_and_back(WithFields("mine", 7))
    assert isinstance(back, WithFields)
    assert back.cause.code == 7


def test_the_remote_traceback_arrives() -> None:
    back = there_and_back(ValueError("mine"))
    assert "in raised" in str(back)
    assert "ValueError: mine" in str(back)
    assert "Deployment.method" in str(back)
    assert str(os.getpid()) in str(back)


@pytest.mark.parametrize(
    "error",
    [CannotBeBuiltAgain("mine", code=1), HoldsALock("mine"), SystemExit("mine")],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_that_cannot_travel_arrives_as_type_text_and_traceback(
    error: BaseException,
) -> None:
    back = there_and_back(error)
    assert isinstance(back, RayTaskError)
    for part in (type(error).__name__, "mine", "in raised"):
        assert part in str(back)


def test_an_exception_that_ends_processes_ends_no_caller() -> None:
    for error in (SystemExit(3), KeyboardInterrupt()):
        assert isinstance(there_and_back(error), Exception)


def test_a_handler_that_raises_cancelled_error_cancels_nobody_else() -> None:
    back = there_and_back(asyncio.CancelledError())
    assert isinstance(back, RequestCancelledError)
    assert not isinstance(back, asyncio.CancelledError)


@pytest.mark.parametrize(
    "error",
    [
        CannotBeShown(),
        ValueError("a name: \udcff"),
        ValueError("\x00"),
        type("Ü", (Exception,), {})(),
    ],
    ids=["no text", "no unicode", "nul", "local type"],
)
def test_no_exception_is_too_odd_to_be_told(error: Exception) -> None:
    message = message_from_exception(raised(error), "method", may_pickle=True, refs=[])
    assert message.code == Error.USER_EXCEPTION
    assert type(error).__name__ in message.type_name
    assert isinstance(raise_of(message), RayTaskError)


@pytest.mark.parametrize("pickled", [b"garbage", b"\x80\x05K\x01."], ids=["garbage", "an int"])
def test_a_pickle_that_holds_no_exception_becomes_text(pickled: bytes) -> None:
    message = Error(code=Error.USER_EXCEPTION, type_name="app.Odd", message="mine", pickled=pickled)
    back = raise_of(message)
    assert isinstance(back, RayTaskError)
    assert "app.Odd: mine" in str(back.cause)


# ------------------------------------------------------------ where pickle is refused


class Boom(Exception):
    """Counts how often it is built from a pickle."""

    built = 0

    def __reduce__(self) -> tuple[object, ...]:
        return Boom.build, ()

    @classmethod
    def build(cls) -> Boom:
        cls.built += 1
        return cls("rebuilt")


@pytest.mark.parametrize("error", [ValueError("mine"), Boom("mine"), HoldsALock("mine")])
def test_a_replica_without_pickle_sends_what_is_told_of_an_exception(error: Exception) -> None:
    Boom.built = 0
    message = message_from_exception(raised(error), "method", may_pickle=False, refs=[])
    assert (message.pickled, Boom.built) == (b"", 0)
    back = raise_of(message)
    assert isinstance(back, RayTaskError)
    for part in (type(error).__name__, "mine", "in raised"):
        assert part in str(back)


@pytest.mark.parametrize("error", [ValueError("mine"), Boom("mine")])
def test_a_caller_without_pickle_does_not_load_the_exception(error: Exception) -> None:
    message = message_from_exception(raised(error), "method", may_pickle=True, refs=[])
    assert message.pickled
    Boom.built = 0
    back = raise_of(message, may_unpickle=False)
    assert isinstance(back, RayTaskError)
    assert not isinstance(back, (ValueError, Boom))
    assert Boom.built == 0
    assert "pickle is refused here" in str(back.cause)
    for part in (type(error).__name__, "mine", "in raised"):
        assert part in str(back)
