"""The user's exception on its way to the caller: same type, same fields, remote traceback.

Whatever the exception is like, there is a message for it, and something to raise for the message.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import RemoteException, message_from_exception
from serve_grpc.errors import DeadlineExceededError, ReplicaError, ServeGrpcError
from tests.unit.unpicklable import Unpicklable


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
        self.lock = Unpicklable()


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
    return RemoteException(message, request_id="req", may_unpickle=may_unpickle).load()


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


@pytest.mark.parametrize("stop", [StopIteration("mine"), StopAsyncIteration("mine")])
def test_an_exception_that_would_end_a_loop_is_a_runtime_error(stop: Exception) -> None:
    back = there_and_back(stop)
    assert isinstance(back, RuntimeError)
    assert not isinstance(back, (StopIteration, StopAsyncIteration))
    for part in (type(stop).__name__, "mine", "in raised"):
        assert part in str(back)


@pytest.mark.parametrize("pickled", [b"garbage", b"\x80\x05K\x01."], ids=["garbage", "an int"])
def test_a_pickle_that_holds_no_exception_becomes_text(pickled: bytes) -> None:
    message = Error(code=Error.USER_EXCEPTION, type_name="app.Odd", message="mine", pickled=pickled)
    back = raise_of(message)
    assert isinstance(back, RayTaskError)
    assert "app.Odd: mine" in str(back.cause)


@pytest.mark.parametrize(
    "error",
    [ValueError("mine", Unpicklable()), KeyError(Unpicklable()), OSError(Unpicklable())],
    ids=lambda error: type(error).__name__,
)
def test_one_of_pythons_own_that_cannot_be_pickled_is_still_of_its_type(error: Exception) -> None:
    back = there_and_back(error)
    assert isinstance(back, type(error))
    assert isinstance(back, RayTaskError)
    assert not isinstance(back, ServeGrpcError)
    assert type(back.cause) is type(error)
    assert back.cause.args == (str(error),)
    assert "in raised" in str(back)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no exception groups")
def test_a_group_that_cannot_be_pickled_says_what_it_was() -> None:
    group = ExceptionGroup("two of them", [ValueError(Unpicklable()), KeyError("k")])  # noqa: F821
    back = there_and_back(group)
    assert isinstance(back, RayTaskError)
    assert not isinstance(back, ServeGrpcError)
    for part in ("ExceptionGroup", "two of them", "in raised", "KeyError: 'k'"):
        assert part in str(back)
    assert "builtins.ExceptionGroup: two of them" in str(back.cause)


def test_what_ends_a_process_is_told_by_our_own_class() -> None:
    for error in (SystemExit(3), KeyboardInterrupt(), GeneratorExit()):
        back = there_and_back(error)
        assert isinstance(back, ReplicaError)
        assert type(error).__name__ in str(back.cause)


# ------------------------------------------------------------ code that runs as it is loaded


class Program(Exception):
    """Its pickle runs what `does` says, on the way in or out."""

    def __init__(self, text: str, does: Any = None) -> None:
        super().__init__(text)
        self.does = does

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (self.does,)


def _load(does: Any) -> Exception:
    if does is not None:
        raise does("mine too")
    return Program("loaded")


class Unpicklable(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        raise SystemExit("while it is pickled")


class PicklesOnce(Exception):
    """Ray pickles it again, to see whether it can."""

    pickled = 0

    def __reduce__(self) -> tuple[Any, ...]:
        PicklesOnce.pickled += 1
        if PicklesOnce.pickled > 1:
            raise SystemExit("while it is pickled again")
        return PicklesOnce, ("mine",)


ENDERS = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, MemoryError]


def message_of(error: Exception, pickled: bytes = b"") -> Error:
    message = message_from_exception(raised(error), "method", may_pickle=not pickled, refs=[])
    message.pickled = pickled or message.pickled
    return message


def pickled_to_raise(kind: type[BaseException]) -> bytes:
    return pickle.dumps(Program("mine", kind))


@pytest.mark.parametrize("kind", ENDERS)
def test_an_exception_that_ends_whoever_loads_it_arrives_as_text(kind: type[BaseException]) -> None:
    message = message_of(Program("mine"), pickled_to_raise(kind))
    with ThreadPoolExecutor(1) as pool:
        back = pool.submit(raise_of, message).result()
    assert isinstance(back, RayTaskError)
    for part in ("Program", "mine", "in raised"):
        assert part in str(back)
    assert f"cannot be unpickled here ({kind.__name__}: mine too)" in str(back.cause)


def test_ctrl_c_while_an_exception_is_loaded_is_let_through() -> None:
    message = message_of(Program("mine"), pickled_to_raise(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        raise_of(message)


@pytest.mark.parametrize("error", [Unpicklable("mine"), Program("mine", SystemExit)])
def test_an_exception_that_ends_whoever_pickles_it_ends_no_replica(error: Exception) -> None:
    back = there_and_back(error)
    assert isinstance(back, RayTaskError)
    assert "mine" in str(back)


def test_an_exception_that_ray_cannot_take_arrives_as_text() -> None:
    PicklesOnce.pickled = 0
    message = message_of(PicklesOnce("mine"), pickle.dumps(PicklesOnce("mine")))
    back = raise_of(message)
    assert "while it is pickled again" in str(back.cause)
    assert "mine" in str(back)


def test_nothing_is_loaded_before_somebody_asks_and_then_each_time() -> None:
    message = message_of(Boom("mine"))
    Boom.built = 0
    remote = RemoteException(message, request_id="req", may_unpickle=True)
    assert (Boom.built, "Boom" in repr(remote)) == (0, True)
    first, second = remote.load(), remote.load()
    assert Boom.built == 2
    assert first is not second
    assert first.cause is not second.cause


# ------------------------------------------------------------ the user's own that look like ours


class Refused(ServeGrpcError):
    def __init__(self, reason: str) -> None:
        super().__init__(f"refused: {reason}", request_id="the user's")
        self.reason = reason


class Settled(ServeGrpcError):
    """With a name of ours that cannot be set."""

    def __init__(self) -> None:
        Exception.__init__(self, "settled")
        self.message = "settled"

    @property
    def may_have_executed(self) -> bool:
        return False


@pytest.mark.parametrize("error", [Refused("sold out"), DeadlineExceededError("index"), Settled()])
def test_an_error_of_the_users_that_is_one_of_ours_is_the_users(error: ServeGrpcError) -> None:
    back = there_and_back(error)
    assert isinstance(back, RayTaskError)
    assert isinstance(back, type(error))
    assert (str(back.cause), "in raised" in str(back)) == (str(error), True)
    assert back.cause.__dict__ == error.__dict__


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
    assert not isinstance(back, Boom)
    assert Boom.built == 0
    assert isinstance(back, ValueError) or "pickle is refused here" in str(back.cause)
    for part in (type(error).__name__, "mine", "in raised"):
        assert part in str(back)
