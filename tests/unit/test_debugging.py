"""Whether debug lines are wanted is told by the logger's own answers, and follows its level."""

from __future__ import annotations

import logging

import pytest

from serve_grpc.config import LOGGER_NAME
from serve_grpc.debugging import is_debugged


def test_a_change_of_the_level_is_seen_at_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(LOGGER_NAME)
    for level, is_wanted in ((logging.INFO, False), (logging.DEBUG, True), (logging.INFO, False)):
        caplog.set_level(level, LOGGER_NAME)
        logger.debug("the logger answers, and keeps its answer")
        assert is_debugged() is is_wanted
