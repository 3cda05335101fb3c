"""Which Ray this package was checked with."""

from __future__ import annotations

import re

import ray

__all__ = ["check_ray_version"]

OLDEST = (2, 57)
NEWEST = (2, 60)


def check_ray_version(version: str = ray.__version__) -> None:
    """Refuse a Ray outside the tested range.

    Raises:
        ImportError: The text names the range.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    if not OLDEST <= found <= NEWEST:
        low, high = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise ImportError(
            f"serve_grpc works with Ray {low} to {high}, but Ray {version} is installed; "
            f"a tested one is `ray[serve]>={low},<{NEWEST[0]}.{NEWEST[1] + 1}`."
        )
