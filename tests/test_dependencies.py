"""The floors of dependencies, and the table of vulnerabilities that they exclude."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
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


def floors() -> dict[str, Version]:
    """The lowest version of each dependency that may be installed."""
    text = (ROOT / "pyproject.toml").read_text()
    (listed,) = re.findall(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    requirements = map(Requirement, re.findall(r'"([^"]+)"', listed))
    return {
        requirement.name: Version(specifier.version)
        for requirement in requirements
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }


def test_the_table_has_the_packages_that_read_what_strangers_send() -> None:
    assert set(table()) == {"grpcio", "protobuf", "orjson", "msgpack"}
    assert sorted(cve for _, cves in table().values() for cve in cves) == sorted(FIXED_IN)


@pytest.mark.parametrize("package", ["grpcio", "protobuf", "orjson", "msgpack"])
def test_a_floor_is_the_tables_and_excludes_its_vulnerabilities(package: str) -> None:
    floor, cves = table()[package]
    assert floors()[package] == Version(floor)
    for cve in cves:
        assert Version(floor) >= Version(FIXED_IN[cve]), cve
    assert Version(version(package)) >= Version(floor)
