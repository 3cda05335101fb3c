"""How often a caller pings: the more connections it has, the rarer each of the later ones."""

from __future__ import annotations

import pytest

from serve_grpc.carriers.grpc.credentials import (
    FEW_CONNECTIONS,
    KEEPALIVE_MS,
    LONGEST_KEEPALIVE_MS,
    channel_options,
    keepalive_ms,
)


@pytest.mark.parametrize(
    ("connections", "ms"),
    [
        (0, KEEPALIVE_MS),
        (FEW_CONNECTIONS, KEEPALIVE_MS),
        (2 * FEW_CONNECTIONS, 2 * KEEPALIVE_MS),
        (10_000, LONGEST_KEEPALIVE_MS),
    ],
)
def test_the_first_few_are_pinged_soon_and_none_is_forgotten(connections: int, ms: int) -> None:
    assert keepalive_ms(connections) == ms
    assert dict(channel_options(connections))["grpc.keepalive_time_ms"] == ms


def test_a_thousand_connections_cause_few_pings() -> None:
    pings_per_s = sum(1000 / keepalive_ms(connections) for connections in range(1000))
    assert pings_per_s < 40  # in place of 200
