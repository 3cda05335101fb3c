"""The command that tries every supported Ray: what it runs, and how it reads the result."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray.versions import ROOT, SUITE, VERSIONS, outcome_of

REPORT = """\
<testsuites><testsuite tests="5">
  <testcase name="a"/>
  <testcase name="b"><failure message="no">text</failure></testcase>
  <testcase name="c"><error message="setup">text</error></testcase>
  <testcase name="d"><skipped message="needs Ray 2.58: x"/></testcase>
  <testcase name="e"><skipped message="needs Ray 2.58: x"/></testcase>
</testsuite></testsuites>
"""


def test_the_suite_is_made_of_files_that_exist() -> None:
    assert [file for file in SUITE if not (ROOT / file).is_file()] == []


def test_all_supported_versions_are_tried() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'"ray[serve]>={VERSIONS[0]},<2.{int(VERSIONS[-1].split(".")[1]) + 1}"' in text


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
