"""Hypothesis settings of the property tests: no deadline an example, machines may be slow."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from serve_grpc.protocol import caller, replica, wire

hypothesis.settings.register_profile(
    "serve_grpc",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("serve_grpc")


@pytest.fixture(scope="module")
def tiny_messages() -> Iterator[None]:
    """Every limit of the wire small enough for a few bytes to cross it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (wire, caller, replica):
            patch.setattr(module, "INLINE_BYTES", 12)
        patch.setattr(wire, "MAX_TEMPLATES", 3)
        patch.setattr(wire, "FRAGMENT_BYTES", 20)
        patch.setattr(wire, "HAND_DECODE_BYTES", 24)
        patch.setattr(wire, "BATCH_BYTES", 250)
        yield
