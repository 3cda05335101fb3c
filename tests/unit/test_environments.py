"""The commands that try other versions of Ray and of the dependencies: what they run, and how they
read the result."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import dependencies
from tests.environments import ROOT, outcome_of
from tests.ray import versions

REPORT = """\
<testsuites><testsuite tests="5">
  <testcase name="a"/>
  <testcase name="b"><failure message="no">text</failure></testcase>
  <testcase name="c"><error message="setup">text</error></testcase>
  <testcase name="d"><skipped message="needs Ray 2.58: x"/></testcase>
  <testcase name="e"><skipped message="needs Ray 2.58: x"/></testcase>
</testsuite></testsuites>
"""


@pytest.mark.parametrize("suite", [versions.SUITE, dependencies.SUITE], ids=["ray", "dependencies"])
def test_a_suite_is_made_of_what_exists(suite: tuple[str, ...]) -> None:
    assert [place for place in suite if not (ROOT / place).exists()] == []


def test_all_supported_versions_are_tried() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    oldest, newest = versions.VERSIONS[0], versions.VERSIONS[-1]
    assert f'"ray[serve]>={oldest},<2.{int(newest.split(".")[1]) + 1}"' in text


def test_the_ranges_are_those_of_the_dependencies_and_of_numpy() -> None:
    names = {"ray", "grpcio", "grpcio-health-checking", "grpcio-reflection"}
    names |= {"protobuf", "msgpack", "orjson", "numpy"}
    assert set(dependencies.ranges()) == set(dependencies.floors()) == names


def test_a_package_that_could_be_newer_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = {name: Requirement(f"{name}<8") for name in ("protobuf", "grpcio", "orjson")}
    monkeypatch.setattr(dependencies, "ranges", lambda: ranges)
    outdated = [
        {"name": "protobuf", "version": "6.33.6", "latest_version": "7.36.2"},
        {"name": "grpcio", "version": "7.0", "latest_version": "8.0"},  # out of the range
        {"name": "setuptools", "version": "65.5.0", "latest_version": "84.2.1"},
    ]
    assert dependencies.held_back(outdated) == ["protobuf 6.33.6 of 7.36.2"]


def test_a_report_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    outcome = outcome_of(report, "2.57.1", 3.0)
    assert (outcome.passed, outcome.failed) == (1, 2)
    assert outcome.skipped == ("needs Ray 2.58: x",)
    assert not outcome.is_good


@pytest.mark.parametrize("cases", ["", '<testcase name="d"><skipped message="x"/></testcase>'])
def test_a_run_without_a_passed_test_is_no_success(tmp_path: Path, cases: str) -> None:
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert not outcome_of(report, "2.57.1", 0.0).is_good
