"""The transport under test."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.ray.compat.behaviours import over


class Transport(NamedTuple):
    """The transport of this run of a test. `name` is one of `behaviours.TRANSPORTS`."""

    name: str

    def over(self, handle: Any) -> Any:
        """The deployment of `handle`, called over this transport."""
        return over(self.name, handle)


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> Transport:
    """Set by `@behaviour`."""
    return Transport(request.param)
