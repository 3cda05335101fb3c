"""The form of findings/: what each script has to say, and the table. None is run here."""

from __future__ import annotations

import os
import re

import pytest

from tests.environments import ROOT

FINDINGS = ROOT / "findings"
SCRIPTS = sorted(FINDINGS.glob("*.sh"))


def test_the_table_has_a_row_for_each_script() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\((\w+\.sh)\) \|", (FINDINGS / "README.md").read_text(), re.M)
    assert [(script.stem, script.name) for script in SCRIPTS] == rows


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_what_it_shows(script) -> None:
    comments = "\n".join(re.findall(r"^# ?(.*)$", script.read_text(), re.MULTILINE))
    for heading in ("Versions: ", "Expected: ", "What happens: ", "Output seen:\n  "):
        assert f"\n{heading}" in comments
    assert os.access(script, os.X_OK)
    assert re.search(r"pip\" install .*[\w\]]==[\d.]+'?", script.read_text())
    assert "serve_grpc" not in script.read_text()
