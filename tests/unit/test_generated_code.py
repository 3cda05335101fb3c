"""How `make check` finds that the checked-in stubs are not what protoc makes of the .proto file.

protoc itself is not asked: it is in an environment of its own, and `make check` runs it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

GENERATOR = Path(__file__).resolve().parents[2] / "protos" / "generate.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_as_they_are_show_no_difference(generator: ModuleType) -> None:
    generated = {name: (generator.OUT / name).read_text() for name in generator.NAMES}
    assert generator.differences(generated) == []


def test_a_stale_file_is_noticed(generator: ModuleType) -> None:
    name = generator.NAMES[0]
    stale = {name: (generator.OUT / name).read_text() + "\nCHANGED = True\n"}
    assert "+CHANGED = True\n" in generator.differences(stale)
