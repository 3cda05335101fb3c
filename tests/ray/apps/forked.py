"""A deployment that says what its process is."""

from __future__ import annotations

import os
from typing import Any

import psutil

__all__ = ["Worker"]


class Worker:
    """Asked by `tests/ray/test_forked_workers.py`."""

    async def __call__(self, variable: str) -> dict[str, Any]:
        process = psutil.Process()
        parent = process.parent()
        return {
            "is forked": parent is not None and "tests.ray.forked.server" in parent.cmdline(),
            "has a title": process.cmdline()[0].startswith("ray::ServeReplica"),
            "variable": os.environ.get(variable),
        }
