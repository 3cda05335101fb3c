"""Bursts of calls at a deployment with few slots, from a handle that nobody has used yet."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

from ray.serve.exceptions import BackPressureError

__all__ = ["Burst", "answered", "fresh"]


def fresh(handle: Any) -> Any:
    """The same handle as another process gets it: with a router of its own, which knows nothing."""
    return pickle.loads(pickle.dumps(handle))


async def answered(responses: list[Any]) -> int:
    """How many calls were let in; all others must have been refused."""
    outcomes = await asyncio.gather(*responses, return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    others = [error for error in errors if not isinstance(error, BackPressureError)]
    assert not others, others
    return len(outcomes) - len(errors)


class Burst:
    """A caller inside a replica."""

    async def __call__(self, handle: Any, path: str, calls: int) -> int:
        return await answered([handle.remote(path, f"{i}") for i in range(calls)])
