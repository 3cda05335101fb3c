"""Opting in leaves the user's class or function alone, and what Serve sees of it."""

from __future__ import annotations

import abc
import functools
import inspect
import pickle
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pydantic
import pytest
import ray
from ray import cloudpickle, serve

import serve_grpc

T = TypeVar("T")


def loaded(deployment: serve.Deployment) -> Any:
    """What a replica runs."""
    return cloudpickle.loads(deployment._replica_config.serialized_deployment_def)


class Registry:
    known: list[str] = []  # noqa: RUF012 (what users write)

    def __init_subclass__(cls, **options: Any) -> None:
        Registry.known.append(cls.__name__)


class Sealer(type):
    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> Any:
        assert not any(isinstance(each, Sealer) for each in bases), f"{name} extends a sealed class"
        return super().__new__(cls, name, bases, space)

    def __setattr__(cls, name: str, value: Any) -> None:
        raise AttributeError(f"{name} cannot be set")


class Registered(Registry):
    def exact(self) -> bool:
        return type(self) is Registered


class Final(metaclass=Sealer):
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


@dataclass(frozen=True, slots=True)
class Record:
    value: int


class Model(pydantic.BaseModel):
    value: int = 3


class Abstract(abc.ABC, Generic[T]):
    @abc.abstractmethod
    def __call__(self) -> T: ...


class Concrete(Abstract[int]):
    def __new__(cls, *args: Any) -> Concrete:
        return super().__new__(cls)

    def __call__(self) -> int:
        return 1


def timed(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


async def nothing() -> str:
    return "ok"


def annotated(a: int = 1, *, b: str = "b") -> str:
    return f"{a}{b}"


annotated.__signature__ = inspect.Signature()  # type: ignore[attr-defined]

CODES = [Registered, Final, Record, Model, Concrete, int, timed(nothing), annotated, nothing]


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.__name__)
def test_code_stays_what_it_is(code: Any) -> None:
    known, before = list(Registry.known), dict(vars(code))
    enabled = serve_grpc.deployment(num_replicas=2)(code)
    again = serve_grpc.deployment(serializers=["orjson"])(code)
    app = serve_grpc.enable(serve.deployment(code).bind())
    for deployment in (enabled, again, app._bound_deployment, enabled.options(name="other")):
        assert deployment.func_or_class is code
        assert isinstance(deployment, serve.Deployment)
    assert dict(vars(code)) == before
    assert Registry.known == known
    assert enabled.name == serve.deployment(code).name
    ours, serves = loaded(enabled), loaded(serve.deployment(code))
    assert (ours is code) == (serves is code)  # by reference what can be imported, else by value
    assert type(ours) is type(code)
    if inspect.isfunction(code):
        assert inspect.signature(ours) == inspect.signature(code)
        assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(code)


def test_a_wrapped_function_keeps_what_is_known_of_it() -> None:
    async def local() -> int:
        return 1

    wrapper = timed(local)
    wrapper.note = "kept"
    copy = loaded(serve_grpc.deployment(wrapper))
    assert copy is not wrapper
    assert list(inspect.signature(copy).parameters) == []
    assert copy.note == "kept"
    assert copy.__wrapped__.__name__ == "local"


def test_a_deployment_is_pickled_with_its_opt_in() -> None:
    enabled = serve_grpc.deployment(serializers=["orjson"])(Registered)
    copy = pickle.loads(cloudpickle.dumps(enabled))
    assert copy == enabled
    assert copy.options(num_replicas=2).serializers == {"orjson"}


@pytest.mark.parametrize("wrong", [functools.partial(annotated), 3, None])
def test_what_serve_refuses_is_refused_in_its_words(wrong: Any) -> None:
    errors = []
    for decorate in (serve.deployment, serve_grpc.deployment):
        with pytest.raises(Exception) as raised:  # noqa: PT011 (compared below)
            decorate(num_replicas=1)(wrong)
        errors.append((type(raised.value), str(raised.value)))
    assert errors[0] == errors[1]


def test_decorating_a_deployment_opts_it_in_with_more_options() -> None:
    plain = serve.deployment(num_replicas=3, max_ongoing_requests=7)(Registered)
    above = serve_grpc.deployment(plain)
    assert (above.num_replicas, above.max_ongoing_requests) == (3, 7)
    renamed = serve_grpc.deployment(name="other", num_replicas=1)(plain)
    assert (renamed.name, renamed.num_replicas, renamed.max_ongoing_requests) == ("other", 1, 7)
    for deployment in (above, renamed):
        assert deployment.func_or_class is Registered
        assert hasattr(deployment, "serializers")
    assert not hasattr(plain, "serializers")
    assert plain.num_replicas == 3


def test_decorating_an_application_names_what_takes_one() -> None:
    with pytest.raises(TypeError, match=r"serve_grpc\.enable"):
        serve_grpc.deployment(serve.deployment(Registered).bind())


def test_an_application_bound_twice_stays_one() -> None:
    leaf = serve_grpc.deployment(Registered).bind()
    handle = serve.handle.DeploymentHandle("Elsewhere", "app")
    root = serve_grpc.deployment(Final).bind([leaf, handle], other=leaf)
    bound = root._bound_deployment
    ((first, ours),) = bound.init_args
    assert first is leaf is bound.init_kwargs["other"]
    assert isinstance(ours, serve_grpc.DeploymentHandle)


def test_statistics_of_a_handle_that_is_not_ours_say_how_to_get_one() -> None:
    of_serves = serve.handle.DeploymentHandle("Elsewhere", "app")
    with pytest.raises(TypeError, match=r"serve_grpc\.wrap"):
        serve_grpc.handle_statistics(of_serves)
    with pytest.raises(TypeError, match=r"got builtins\.int$"):
        serve_grpc.handle_statistics(3)
    assert serve_grpc.handle_statistics(serve_grpc.wrap(of_serves)).deployment_name == "Elsewhere"


def test_signing_without_a_cluster_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=r"ray\.init"):
        serve_grpc.sign_call("a-replica", "/serve_grpc.v1.Replica/Call")
