"""docs/values.md: each cell of its first table is tried, each serializer, and by reference."""

from __future__ import annotations

import datetime
import decimal
import math
import pickle
import re
import sys
import types
import uuid
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy
import pandas
import pytest

from serve_grpc.errors import SerializationError
from serve_grpc.serialization import get_serializer
from tests.test_docs import DOCS, snippets

PAGE = DOCS / "values.md"
ROW = re.compile(r"^\| `(.+?)` \|" + r" (.+?) \|" * 5 + "$", re.MULTILINE)
COLUMNS = ["by reference", "cloudpickle", "pickle", "msgpack", "orjson"]
# How a cell that is no value begins, and what then holds of what came, beside the value sent.
IN_WORDS = {
    "same, read-only": lambda came, sent: same(came, sent) and not can_be_written(came),
    "same": lambda came, sent: same(came, sent) and can_be_written(came) is not False,
    "a view of Ray's": lambda came, sent: bytes(memoryview(came)) == sent.raw(),
    "a copy": lambda came, sent: came is not sent and came() == sent(),
}


@pytest.fixture(scope="module")
def known() -> Iterator[dict[str, Any]]:
    """What the expressions of the page mean."""
    module = types.ModuleType("names_of_the_values_page")
    imported = (datetime, decimal, msgpack, numpy, pandas, pickle, uuid)
    module.__dict__.update({other.__name__: other for other in imported})
    sys.modules[module.__name__] = module  # pickles name classes by their module
    exec(compile(snippets(PAGE)[0].code, PAGE.name, "exec", dont_inherit=True), module.__dict__)
    yield module.__dict__
    del sys.modules[module.__name__]


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, numpy.ndarray):
        return numpy.array_equal(one, other)
    return bool(one.equals(other)) if isinstance(one, pandas.DataFrame) else bool(one == other)


def can_be_written(value: Any) -> bool | None:
    """None for what is neither an array nor a frame."""
    if not isinstance(value, (numpy.ndarray, pandas.DataFrame)):
        return None
    try:
        if isinstance(value, numpy.ndarray):
            value[0] = 7
        else:
            value.iloc[0, 0] = 7
    except ValueError:  # "assignment destination is read-only"
        return False
    return True


def check(cell: str, came: Any, sent: Any, known: dict[str, Any]) -> None:
    if cell.startswith("`"):
        expected = eval(cell.strip("`"), known)
        assert same(came, expected), (came, expected)
    else:
        assert IN_WORDS[cell](came, sent), came


ROWS = ROW.findall(PAGE.read_text())


def test_the_table_is_read() -> None:
    lines = PAGE.read_text().split("| --- |", 1)[1].split("\n\n")[0].splitlines()[1:]
    assert len(ROWS) == len(lines) > 30


@pytest.mark.parametrize("place", range(1, 5), ids=COLUMNS[1:])
@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_serializer_does_what_the_page_says(row, place, known) -> None:
    serializer, cell = get_serializer(COLUMNS[place]), row[1 + place]
    sent = eval(row[0], known)
    if cell == "refused":
        with pytest.raises(SerializationError):
            serializer.dump_response(sent)
        with pytest.raises(SerializationError):
            serializer.dump_request((sent,), {})
        return
    check(cell, serializer.load_response(serializer.dump_response(sent)), sent, known)
    ((came,), _) = serializer.load_request(serializer.dump_request((sent,), {}))
    check(cell, came, sent, known)


@pytest.mark.ray
@pytest.mark.usefixtures("serve_instance")
@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_by_reference_it_is_as_the_page_says(row, known) -> None:
    import ray

    sent = eval(row[0], known)
    check(row[1], ray.get(ray.put(sent)), sent, known)
