"""A deployment with one slot, whose code in threads stays until a file says that it may go."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import serve

import serve_grpc

__all__ = ["Slots", "slots_app"]

PATIENCE_S = 60
POLL_S = 0.01


class Slots:
    """Each method says in `<directory>/<key>.in` that it is inside, and leaves with `<key>.go`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = self.most = 0

    def unary(self, directory: str, key: str) -> str:
        with self._inside(directory, key):
            return key

    def leaves(self, directory: str, key: str) -> None:
        with self._inside(directory, key):
            raise SystemExit

    def items(self, directory: str, key: str) -> Iterator[str]:
        with self._inside(directory, key):
            yield key

    def refilled(self, directory: str, key: str) -> Iterator[bytes]:
        """More than any window holds."""
        path = Path(directory)
        try:
            while True:
                yield bytes(100_000)
                path.joinpath(f"{key}.in").touch()
        finally:
            path.joinpath(f"{key}.out").touch()

    async def most_at_once(self) -> int:
        return self.most

    @contextlib.contextmanager
    def _inside(self, directory: str, key: str) -> Iterator[None]:
        path = Path(directory)
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            path.joinpath(f"{key}.in").touch()
            latest_s = time.monotonic() + PATIENCE_S
            while not path.joinpath(f"{key}.go").exists():
                assert time.monotonic() < latest_s, f"nobody let {key} go"
                time.sleep(POLL_S)
            yield
        finally:
            with self.lock:
                self.inside -= 1
            path.joinpath(f"{key}.out").touch()


def slots_app() -> serve.Application:
    """One replica with one slot."""
    options: dict[str, Any] = {
        "max_ongoing_requests": 1,
        "ray_actor_options": {"num_cpus": 0.01},
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": 20,
    }
    return serve_grpc.deployment(**options)(Slots).bind()
