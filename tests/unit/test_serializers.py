"""Every serializer brings back what it was given, requests and responses alike."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest

from serve_grpc import serialization
from serve_grpc.serialization import get_serializer, register_serializer, serializer_names

JSON_LIKE = [None, True, -1, 2**60, 1.5, "", "häß\n", [], [1, [2, None]], {"a": {"b": [1]}}]
BINARY = [b"", b"\x00\xff" * 1000, {"blob": b"\x00"}]
PLAIN_PYTHON = [2**100, (1, 2), {1, 2}, frozenset({3, 4}), {(1, 2): 3}, 1j, bytearray(b"x"), ...]


@dataclasses.dataclass
class Point:
    x: int
    y: list[float]


class Model(pydantic.BaseModel):
    name: str
    points: list[int]


class TextError(Exception):
    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.code = code

    def __eq__(self, other: object) -> bool:
        return type(other) is TextError and other.args == self.args and other.code == self.code

    __hash__ = Exception.__hash__


class Tensor:
    """Keeps its data in a buffer that pickle protocol 5 may carry out of band, as torch does."""

    def __init__(self, data: Any) -> None:
        self.data = bytearray(data)

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        assert protocol >= 5
        return Tensor, (pickle.PickleBuffer(self.data),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tensor) and other.data == self.data

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Tensor({len(self.data)} bytes)"  # the name of a test must not change


OBJECTS = [Point(1, [2.5]), Model(name="m", points=[1]), TextError("t", 7), Tensor(b"1234" * 999)]


def both_ways(name: str, value: Any) -> tuple[Any, Any]:
    """`value` after a request and after a response."""
    serializer = get_serializer(name)
    # The transport hands over bytes or, for large payloads, a view of them.
    request = memoryview(serializer.dump_request((value,), {"key": value}))
    (positional,), keywords = serializer.load_request(request)
    assert list(keywords) == ["key"]
    assert type(positional) is type(keywords["key"])
    return positional, serializer.load_response(serializer.dump_response(value))


@pytest.mark.parametrize("name", ["cloudpickle", "pickle"])
@pytest.mark.parametrize("value", [*JSON_LIKE, *BINARY, *PLAIN_PYTHON, *OBJECTS], ids=repr)
def test_pickles_bring_any_value_back(name: str, value: Any) -> None:
    for copied in both_ways(name, value):
        assert type(copied) is type(value)
        assert copied == value


@pytest.mark.parametrize("value", [*JSON_LIKE, *BINARY], ids=repr)
def test_msgpack_brings_plain_data_and_bytes_back(value: Any) -> None:
    assert both_ways("msgpack", value) == (value, value)


def test_msgpack_takes_keys_that_are_not_strings() -> None:
    assert both_ways("msgpack", {1: "a"}) == ({1: "a"}, {1: "a"})


@pytest.mark.parametrize("value", JSON_LIKE, ids=repr)
def test_orjson_brings_json_back(value: Any) -> None:
    assert both_ways("orjson", value) == (value, value)


def test_orjson_writes_a_dataclass_as_an_object() -> None:
    assert both_ways("orjson", Point(1, [2.5])) == ({"x": 1, "y": [2.5]},) * 2


@pytest.mark.parametrize("value", [b"", b"raw", b"\x00" * 100_000], ids=len)
def test_noop_hands_bytes_through_unchanged(value: bytes) -> None:
    noop = get_serializer("noop")
    payload = noop.dump_request((value,), {})
    assert payload is value
    assert noop.load_request(memoryview(payload)) == ((value,), {})
    assert noop.load_response(memoryview(noop.dump_response(value))) == value


@pytest.mark.parametrize("name", ["cloudpickle", "pickle"])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4),
        np.asfortranarray(np.ones((3, 4), np.float32)),
        np.array("2024-01-01", "datetime64[D]"),
        np.array(["a", None], object),
        np.zeros((0, 3), np.uint8),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_keep_type_shape_and_order(name: str, array: np.ndarray) -> None:
    for copied in both_ways(name, array):
        np.testing.assert_array_equal(copied, array, strict=True)
        assert copied.flags.f_contiguous == array.flags.f_contiguous


def test_cloudpickle_takes_what_pickle_does_not() -> None:
    step = 3
    function, _ = both_ways("cloudpickle", lambda x: x + step)
    assert function(1) == 4


def test_arguments_without_any_are_an_empty_pair() -> None:
    for name in set(serializer_names()) - {"noop"}:
        serializer = get_serializer(name)
        assert serializer.load_request(serializer.dump_request((), {})) == ((), {})


SCRIPT = """
import sys
from pydantic import BaseModel
from serve_grpc.serialization import get_serializer

class Question(BaseModel):
    text: str
    limits: dict[str, int] = {}

question = Question(text="why", limits={"words": 3})
sys.stdout.buffer.write(get_serializer("cloudpickle").dump_request((question,), {}))
"""


def test_a_model_of_the_callers_main_module_reaches_a_process_without_it(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, check=True)
    (question,), _ = get_serializer("cloudpickle").load_request(done.stdout)
    assert isinstance(question, pydantic.BaseModel)
    assert question.model_dump() == {"text": "why", "limits": {"words": 3}}
    with pytest.raises(pydantic.ValidationError):
        type(question)(text=1)


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(serialization, "_serializers", dict(serialization._serializers))


@pytest.mark.usefixtures("scratch_registry")
def test_a_registered_serializer_is_found_whatever_its_case() -> None:
    register_serializer("Text", lambda value: repr(value).encode(), lambda data: eval(bytes(data)))
    assert "text" in serializer_names()
    assert get_serializer("TEXT") is get_serializer("text")
    assert both_ways("text", {"a": (1, 2)}) == ({"a": (1, 2)}, {"a": (1, 2)})


@pytest.mark.usefixtures("scratch_registry")
def test_a_registered_serializer_may_be_replaced() -> None:
    register_serializer("text", lambda value: b"one", bytes)
    register_serializer("text", lambda value: b"two", bytes)
    assert get_serializer("text").dump_response(None) == b"two"


def test_case_of_a_built_in_name_does_not_matter() -> None:
    assert get_serializer("CloudPickle") is get_serializer("cloudpickle")


def test_the_names_are_those_of_the_contract() -> None:
    assert serializer_names() == ["cloudpickle", "msgpack", "noop", "orjson", "pickle"]
