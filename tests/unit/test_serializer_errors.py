"""What a user reads when a value, some bytes or a name does not fit a serializer."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import msgpack
import numpy as np
import orjson
import pydantic
import pytest

from serve_grpc import misfits
from serve_grpc.errors import SerializationError
from serve_grpc.serialization import get_serializer, register_serializer
from tests.unit.unpicklable import Unpicklable


class Unfit:
    """No serializer takes an instance."""

    def __reduce__(self) -> Any:
        raise TypeError("not this one")


# Serializer, a value it does not take, and the name of a serializer that would.
MISFITS = [
    ("pickle", lambda: 1, "cloudpickle"),
    ("msgpack", {1, 2}, "cloudpickle"),
    ("msgpack", 2**70, "cloudpickle"),
    ("orjson", b"bytes", "msgpack"),
    ("orjson", {1, 2}, "cloudpickle"),
    ("noop", "text", "cloudpickle"),
    ("noop", None, "cloudpickle"),
]
every_misfit = pytest.mark.parametrize(
    ("name", "value", "better"), MISFITS, ids=[f"{n}-{type(v).__name__}" for n, v, _ in MISFITS]
)


@every_misfit
def test_a_response_that_does_not_fit_is_described(name: str, value: Any, better: str) -> None:
    with pytest.raises(SerializationError) as raised:
        get_serializer(name).dump_response(value)
    error = raised.value
    assert (error.serializer, error.direction) == (name, "response")
    for part in (repr(name), type(value).__name__, "response", repr(better)):
        assert part in str(error)
    assert error.__cause__ is not None


@every_misfit
def test_an_argument_that_does_not_fit_is_described(name: str, value: Any, better: str) -> None:
    with pytest.raises(SerializationError) as raised:
        get_serializer(name).dump_request((value,), {})
    error = raised.value
    assert (error.serializer, error.direction) == (name, "request")
    for part in (repr(name), type(value).__name__, "request", repr(better)):
        assert part in str(error)


class Model(pydantic.BaseModel):
    name: str = "m"


@dataclasses.dataclass
class Locked:
    lock: Any = dataclasses.field(default_factory=Unpicklable)


NO_SERIALIZER = "no serializer takes it"
# Serializer, value, what is named of it, and what is advised.
PARTS = [
    ("msgpack", {"k": {1}}, "a value of type set", "'cloudpickle' takes it"),
    ("orjson", {"k": {1}}, "a value of type set", "'cloudpickle' takes it"),
    ("orjson", [1, ({"k": [b"x"]},)], "a value of type bytes", "'msgpack' takes it"),
    ("orjson", [b"x", {1}], "a value of type bytes", "'cloudpickle' takes it"),
    ("orjson", {1: "a"}, "a key of type int", "'msgpack' takes it"),
    ("msgpack", {"k": {frozenset(): 1}}, "a key of type frozenset", "'cloudpickle' takes it"),
    ("orjson", [Model()], f"a value of type {__name__}.Model", "'cloudpickle' t"),
    ("orjson", {"k": np.ones(2)}, "a value of type numpy.ndarray", "'cloudpickle' takes it"),
    ("orjson", [Decimal(1)], "a value of type decimal.Decimal", "'cloudpickle' takes it"),
    ("msgpack", [datetime.date(2020, 1, 1)], "a value of type datetime.date", "'cloudpickle' t"),
    ("pickle", [1, lambda: 1], "a value of type function", "'cloudpickle' takes it"),
    (
        "cloudpickle",
        {"k": [Locked()]},
        "a value of type tests.unit.unpicklable.Unpicklable",
        NO_SERIALIZER,
    ),
    (
        "orjson",
        {"k": [Locked()]},
        "a value of type tests.unit.unpicklable.Unpicklable",
        NO_SERIALIZER,
    ),
    ("noop", [b"x"], "a value of type list", "'cloudpickle' takes it"),
]


@pytest.mark.parametrize(("name", "value", "part", "advice"), PARTS)
def test_the_innermost_part_is_named_and_the_advice_holds(
    name: str, value: Any, part: str, advice: str
) -> None:
    serializer = get_serializer(name)
    for dump in (serializer.dump_response, lambda v: serializer.dump_request((1, v), {"k": 2})):
        with pytest.raises(SerializationError) as raised:
            dump(value)
        text = str(raised.value)
        assert advice in text
        if name != "noop":
            assert part in text
    if advice is not NO_SERIALIZER:
        advised = get_serializer(text.rsplit("('", 1)[1].split("'")[0])
        advised.load_request(advised.dump_request((1, value), {"k": 2}))


@pytest.mark.parametrize("name", ["cloudpickle", "pickle", "msgpack", "orjson"])
def test_the_argument_at_fault_is_found_among_others(name: str) -> None:
    for args, kwargs in [((1, Unfit(), "x"), {}), ((1,), {"a": 2, "b": Unfit()})]:
        with pytest.raises(SerializationError, match=r"test_serializer_errors\.Unfit"):
            get_serializer(name).dump_request(args, kwargs)


class Numbers:
    """An iterator of the user's own, of either kind; no generator."""

    def __init__(self) -> None:
        self.lock = Unpicklable()


class Steps(Numbers):
    def __iter__(self) -> Any:
        return self

    def __next__(self) -> int:
        return 1


class AsyncSteps(Numbers):
    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> int:
        return 1


@pytest.mark.parametrize("name", ["cloudpickle", "pickle", "msgpack", "orjson", "noop"])
@pytest.mark.parametrize(
    ("iterator", "way_out"),
    [
        (Steps(), "`(x for x in it)`"),
        (AsyncSteps(), "`(x async for x in it)`"),
        (map(str, (n for n in range(3))), "`(x for x in it)`"),
        (zip(Steps(), "ab", strict=False), "`(x for x in it)`"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_iterator_that_is_no_generator_is_told_how_to_become_a_stream(
    name: str, iterator: Any, way_out: str
) -> None:
    serializer = get_serializer(name)
    with pytest.raises(SerializationError) as raised:
        serializer.dump_request((1,), {"items": iterator})
    assert way_out in str(raised.value)
    for dump in (serializer.dump_response, serializer.dump_item):  # no way out there
        with pytest.raises(SerializationError) as raised:
            dump(iterator)
        assert way_out not in str(raised.value)


def test_an_iterator_that_the_serializer_takes_is_not_what_is_wrong() -> None:
    with pytest.raises(SerializationError) as raised:
        get_serializer("cloudpickle").dump_request((iter([1, 2]), Unfit()), {})
    assert "generator" not in str(raised.value)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((b"a", b"b"), {}), ((b"a",), {"k": b"b"}), ((), {"k": b"b"})]
)
def test_noop_takes_exactly_one_positional_argument(args: Any, kwargs: Any) -> None:
    with pytest.raises(SerializationError, match="exactly one positional argument"):
        get_serializer("noop").dump_request(args, kwargs)


def test_what_no_serializer_takes_is_still_one_clean_error() -> None:
    with pytest.raises(SerializationError, match=r"generator.*must be picklable"):
        get_serializer("cloudpickle").dump_response(item for item in ())


@pytest.mark.parametrize("name", ["cloudpickle", "pickle", "msgpack", "orjson"])
@pytest.mark.parametrize("payload", [b"", b"\xff\xff\xff", b"\x80\x05"], ids=repr)
def test_bytes_of_another_kind_are_refused_on_both_sides(name: str, payload: bytes) -> None:
    serializer = get_serializer(name)
    with pytest.raises(SerializationError, match=f"'{name}' could not deserialize.*response"):
        serializer.load_response(b"\xc1" if name == "msgpack" else payload)
    with pytest.raises(SerializationError, match=f"'{name}' could not deserialize.*request"):
        serializer.load_request(payload)


@pytest.mark.parametrize(
    "arguments",
    [None, 1, [], [[]], [[], {}, 1], [5, {}], ["text", {}], [[], 5], [[], [1]], [{}, {}]],
    ids=repr,
)
def test_a_request_that_is_no_pair_of_a_list_and_a_map_is_refused(arguments: Any) -> None:
    for name, payload in (
        ("msgpack", msgpack.packb(arguments)),
        ("orjson", orjson.dumps(arguments)),
    ):
        with pytest.raises(SerializationError):
            get_serializer(name).load_request(payload)


def test_keyword_arguments_with_keys_that_are_no_strings_are_refused() -> None:
    with pytest.raises(SerializationError):
        get_serializer("msgpack").load_request(msgpack.packb([[], {1: 2}]))


def test_an_unknown_name_lists_the_known_ones_and_the_way_to_add_one() -> None:
    with pytest.raises(ValueError, match=r"unknown serializer 'yaml'") as raised:
        get_serializer("yaml")
    for part in ("cloudpickle", "pickle", "msgpack", "orjson", "noop", "register_serializer"):
        assert part in str(raised.value)


@pytest.mark.parametrize("name", [None, 1, b"pickle"])
def test_a_name_is_a_string(name: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(type(name).__name__)):
        get_serializer(name)
    with pytest.raises(TypeError, match=re.escape(type(name).__name__)):
        register_serializer(name, bytes, bytes)


@pytest.mark.parametrize("name", ["", "pickle", "ORJSON", "noop"])
def test_a_built_in_or_empty_name_cannot_be_registered(name: str) -> None:
    before = get_serializer("pickle")
    with pytest.raises(ValueError, match="empty or taken"):
        register_serializer(name, bytes, bytes)
    assert get_serializer("pickle") is before


@pytest.mark.parametrize(("dumps", "loads"), [(None, bytes), (bytes, "loads")])
def test_only_functions_can_be_registered(dumps: Any, loads: Any) -> None:
    with pytest.raises(TypeError, match="callable"):
        register_serializer("mine", dumps, loads)


class Exits:
    """A value whose pickle is a program that ends, on the way out or in."""

    def __init__(self, kind: type[BaseException], *, is_written: bool) -> None:
        self.kind, self.is_written = kind, is_written

    def __reduce__(self) -> Any:
        return (_exit, (self.kind,)) if self.is_written else _exit(self.kind)


def _exit(kind: type[BaseException]) -> Any:
    raise kind("the program's own words")


@pytest.mark.parametrize("name", ["cloudpickle", "pickle"])
@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
def test_a_value_that_would_end_the_process_is_described(
    name: str, kind: type[BaseException]
) -> None:
    serializer = get_serializer(name)
    cannot, can = Exits(kind, is_written=False), Exits(kind, is_written=True)
    request, response = serializer.dump_request((can,), {}), serializer.dump_response(can)
    words = f"{kind.__name__}: the program's own words"

    def all_four() -> list[SerializationError]:
        seen = []
        for run in (
            lambda: serializer.dump_request((1, cannot), {}),
            lambda: serializer.load_request(request),
            lambda: serializer.dump_response(cannot),
            lambda: serializer.load_response(response),
        ):
            with pytest.raises(SerializationError, match=words) as raised:
                run()
            seen.append(raised.value)
        return seen

    with ThreadPoolExecutor(1) as pool:
        errors = pool.submit(all_four).result()
    assert [error.direction for error in errors] == ["request", "request", "response", "response"]
    assert "a value of type " in str(errors[0])


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise SystemExit(f"{name} is nobody's business")
        return super().__getattribute__(name)


class Hidden:
    @property
    def __dict__(self) -> Any:
        raise RuntimeError("not to be looked at")


class Endless(dict[str, Any]):
    def values(self) -> Any:
        return itertools.count()


def test_a_value_that_does_not_let_itself_be_looked_at_is_one_clean_error() -> None:
    class Unknown(metaclass=Nameless):
        pass

    class UnknownError(Exception, metaclass=Nameless):
        pass

    class Raises:
        def __reduce__(self) -> Any:
            raise UnknownError("its words")

    for name, value in itertools.product(
        ("msgpack", "orjson"), (Unknown(), Hidden(), Endless(a={1}), Raises())
    ):
        with pytest.raises(SerializationError, match=f"'{name}' could not serialize a value"):
            get_serializer(name).dump_request(([value],), {})
    for name in ("pickle", "cloudpickle"):
        with pytest.raises(SerializationError, match="UnknownError: its words"):
            get_serializer(name).dump_response([Raises()])


def test_the_culprit_among_millions_is_not_looked_for_all_day(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at = []
    monkeypatch.setattr(misfits, "LOOK_S", 0.0)
    for value in ([{1}], {"k": {1}}, Endless(k={1})):
        part = misfits.innermost_misfit(value, lambda part: bool(looked_at.append(part)))
        assert part == f"a value of type {misfits._type_name(value)}"
    assert looked_at == []


def test_ctrl_c_while_a_value_is_read_is_let_through() -> None:
    serializer = get_serializer("pickle")
    payload = serializer.dump_response(Exits(KeyboardInterrupt, is_written=True))
    with pytest.raises(KeyboardInterrupt):
        serializer.load_response(payload)


class CannotBeShown(ValueError):
    def __str__(self) -> str:
        raise SystemExit(3)


def test_an_error_without_a_text_is_described() -> None:
    def dumps(_: Any) -> bytes:
        raise CannotBeShown

    register_serializer("mute", dumps, bytes)
    with pytest.raises(SerializationError, match="CannotBeShown"):
        get_serializer("mute").dump_response(1)
