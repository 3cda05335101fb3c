"""Hundreds of callers that come to one replica at once: each is let in, and soon."""

from __future__ import annotations

import pytest

from bench.reconnect_storm.measure import measure_storms

CALLERS = 300
FIRST_S, LAST_S = 1.0, 10.0


def is_away(reason: str) -> bool:
    """Whether a caller found nobody, or lost who was there before."""
    return "UNAVAILABLE" in reason or reason.endswith(("is gone", "refused", "reset by peer"))


# Several processes that take all of two cores for a quarter of a minute.
@pytest.mark.full
@pytest.mark.timeout(180)
@pytest.mark.parametrize("carrier", ["grpc", "local"])
def test_a_replica_lets_all_its_callers_in_when_they_come_at_once(carrier: str) -> None:
    for storm in measure_storms(carrier, CALLERS, 3, [0.0, 1.0]):
        assert len(storm.times_s) == CALLERS
        assert storm.times_s[0] <= FIRST_S, storm
        assert storm.times_s[-1] <= LAST_S, storm
        # It may be away when they come, and they may hear late of its end; it refuses nobody.
        assert [reason for reason in storm.troubles if not is_away(reason)] == []
