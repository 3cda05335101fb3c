"""The floors of dependencies: the vulnerabilities they exclude, and what generated code needs."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
from packaging.version import Version

from tests.dependencies import floors, ranges
from tests.environments import ROOT

ROW = re.compile(r"^\| `([\w-]+)` \| ([\d.]+) \| ((?:CVE-\d+-\d+(?:, )?)+) \|", re.MULTILINE)

FIXED_IN = {
    "CVE-2023-1428": "1.53.0",
    "CVE-2023-32731": "1.55.0",
    "CVE-2023-32732": "1.55.0",
    "CVE-2023-33953": "1.56.2",
    "CVE-2023-4785": "1.57.0",
    "CVE-2024-7246": "1.66.0",
    "CVE-2024-11407": "1.68.0",
    "CVE-2025-4565": "6.31.1",
    "CVE-2026-0994": "6.33.5",
    "CVE-2024-27454": "3.9.15",
    "CVE-2025-67221": "3.11.6",
    "CVE-2026-57585": "1.2.1",
}
"""Of the newest line of releases that an advisory names; every later one has the fix."""


def table() -> dict[str, tuple[str, list[str]]]:
    """Each package's floor and vulnerabilities, as the page has them."""
    rows = ROW.findall((ROOT / "docs" / "security.md").read_text())
    return {package: (floor, cves.split(", ")) for package, floor, cves in rows}


def test_the_table_has_the_packages_that_read_what_others_send() -> None:
    assert set(table()) == {"grpcio", "protobuf", "orjson", "msgpack"}
    assert sorted(cve for _, cves in table().values() for cve in cves) == sorted(FIXED_IN)


@pytest.mark.parametrize("package", ["grpcio", "protobuf", "orjson", "msgpack"])
def test_a_floor_is_the_tables_and_excludes_its_vulnerabilities(package: str) -> None:
    floor, cves = table()[package]
    assert floors()[package] == Version(floor)
    for cve in cves:
        assert Version(floor) >= Version(FIXED_IN[cve]), cve
    assert Version(version(package)) >= Version(floor)


def written_by(file: str, pattern: str) -> Version:
    """The version that a generated file says it was made with, or for."""
    text = (ROOT / "serve_grpc" / "_generated" / file).read_text()
    return Version(re.findall(pattern, text, re.MULTILINE)[0])


def test_generated_code_is_of_the_pinned_tool_and_runs_on_the_floors_and_on_the_newest() -> None:
    wanted = (ROOT / "protos" / "requirements.txt").read_text()
    (tool,) = re.findall(r"^grpcio-tools==(.+)$", wanted, re.MULTILINE)
    grpc = written_by("replica_pb2_grpc.py", r"^GRPC_GENERATED_VERSION = '(.+)'$")
    protobuf = written_by("replica_pb2.py", r"^# Protobuf Python Version: (.+)$")
    assert grpc == Version(tool)
    assert floors()["grpcio"] >= grpc
    assert floors()["protobuf"] >= protobuf
    # A runtime takes code that was made for its own major version or for the one before.
    assert ranges()["protobuf"].specifier.contains(f"{protobuf.major + 1}.99")
    assert not ranges()["protobuf"].specifier.contains(f"{protobuf.major + 2}")
