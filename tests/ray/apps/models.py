"""A multiplexed deployment one of whose models takes no input it is given."""

from __future__ import annotations

import os
from typing import Any

from ray import serve

__all__ = ["BAD", "GOOD", "Models", "loads"]

BAD, GOOD = "bad", "good"


def loads(path: str) -> list[str]:
    """What was loaded until now, in order; on all replicas."""
    try:
        with open(f"{path}/loads") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def _append(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


class Models:
    """Args: `path`, of a directory that all replicas write to."""

    def __init__(self, path: str) -> None:
        self._path = path

    @serve.multiplexed(max_num_models_per_replica=3)
    async def load(self, model_id: str) -> str:
        _append(f"{self._path}/loads", model_id)
        return model_id

    async def __call__(self, value: Any = None) -> tuple[str, int]:
        model = await self.load(serve.get_multiplexed_model_id())
        if model == BAD:
            raise ValueError(f"{value!r} is no input of this model")
        return model, os.getpid()
