"""Tests of what not every supported Ray has are skipped on the older ones, with the reason."""

from __future__ import annotations

import pytest
import ray

__all__ = ["needs_ray"]


def needs_ray(version: str, why: str) -> pytest.MarkDecorator:
    """Skip the test if the installed Ray is older.

    Args:
        version: "2.58", say.
        why: What that version brought.
    """
    is_older = _numbers(ray.__version__) < _numbers(version)
    return pytest.mark.skipif(is_older, reason=f"needs Ray {version}: {why}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
