"""The checked-in stubs are what protoc makes of the .proto file."""

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


def test_generated_code_is_up_to_date(generator: ModuleType) -> None:
    assert "".join(generator.differences(generator.generate())) == ""


def test_a_stale_file_is_noticed(generator: ModuleType) -> None:
    generated = generator.generate()
    name = next(iter(generated))
    stale = {**generated, name: generated[name] + "\nCHANGED = True\n"}
    assert "+CHANGED = True\n" in generator.differences(stale)
