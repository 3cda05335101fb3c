"""How often the same warning is logged."""

from __future__ import annotations

import itertools
import logging
from types import SimpleNamespace

import pytest

from serve_grpc.caller import trouble as warning_module
from serve_grpc.caller.trouble import PAUSE_S, RateLimitedWarning
from serve_grpc.config import LOGGER_NAME


def said_at(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times_s: list[float]
) -> list[float]:
    """When a warning was logged, of the times at which there was a reason."""
    warning, said = RateLimitedWarning(), []
    for now_s in times_s:
        clock = SimpleNamespace(monotonic=lambda now_s=now_s: now_s)
        monkeypatch.setattr(warning_module, "time", clock)
        caplog.clear()
        with caplog.at_level(logging.WARNING, LOGGER_NAME):
            warning.warn("no %s", "answer")
        if caplog.messages:
            assert caplog.messages == ["no answer"]
            said.append(now_s)
    return said


def test_warnings_become_rarer_and_never_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = said_at(monkeypatch, caplog, [float(second) for second in range(7200)])
    assert said[:5] == [0, 30, 90, 210, 450]
    assert {later - earlier for earlier, later in itertools.pairwise(said[5:])} == {PAUSE_S[1]}


def test_after_a_long_time_without_a_reason_it_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    long_s = 2 * PAUSE_S[1] + 1
    times = [0, 40, 40 + long_s, 45 + long_s, 75 + long_s]
    assert said_at(monkeypatch, caplog, times) == [0, 40, 40 + long_s, 75 + long_s]
