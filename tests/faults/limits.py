"""How much later than promised something may be, where a test is not alone on the machine."""

from __future__ import annotations

import os

__all__ = ["allowed"]

BESIDE_ANOTHER = 3


def allowed(limit: float) -> float:
    """What a figure of a fault may be at most: `limit`, or three times that beside other tests.

    `make test-faults` runs alone and holds each figure to its limit. `make test-all` runs two tests
    at once, with a Ray each, on as few as two cores; there a figure only has to be of its order.
    """
    return limit * BESIDE_ANOTHER if "PYTEST_XDIST_WORKER" in os.environ else limit
