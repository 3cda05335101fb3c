"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.sessions_loop import TransportLoop


@pytest.fixture
def transport() -> Iterator[TransportLoop]:
    """A running transport loop."""
    started = TransportLoop()
    yield started
    started.stop()
