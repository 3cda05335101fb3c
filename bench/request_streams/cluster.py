"""One Ray node with Serve, and the applications of `apps.py` on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve

from bench.on_serve.sides import actor_options, opted_in
from bench.plan.contenders import OVER_GRPC, parse
from bench.request_streams.apps import HOPS, BareEcho, Caller, Sink

__all__ = ["Callers", "one_node"]

FEW = {"num_cpus": 0.01}
STORE_BYTES = 512 * 1024**2


@contextmanager
def one_node() -> Iterator[None]:
    """Ray and Serve; both end with the block."""
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        log_to_driver=False,
        configure_logging=False,
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(proxy_location="Disabled")
        yield
    finally:
        ray.shutdown()


class Callers:
    """The applications, and a caller for each kind of contender."""

    def __init__(self) -> None:
        self._callers: dict[str, Any] = {}
        for side in ("serve", "serve_grpc"):
            sink = serve.deployment(max_ongoing_requests=1000, ray_actor_options=FEW)(Sink)
            # Three in a row, for the streams that callees pass on by hand.
            first, second, third = (sink.options(name=hop) for hop in HOPS)
            app = first.bind(second.bind(third.bind()))
            serve.run(opted_in(app, side), name=f"sink-{side}", route_prefix=None)
        echo = serve.deployment(ray_actor_options=FEW)(BareEcho)
        bare = serve.run(echo.bind(), name="bare", route_prefix=None)
        self._bare = bare.options(_by_reference=True)

    def _caller(self, contender: str) -> Any:
        """The replica that makes a contender's load."""
        kind = parse(contender)
        key = f"{kind.side}-{kind.carrier}"
        if key not in self._callers:
            options = actor_options(kind.carrier)
            caller = serve.deployment(max_ongoing_requests=10, ray_actor_options=options)(Caller)
            handle = serve.run(caller.bind(), name=f"caller-{key}", route_prefix=None)
            self._callers[key] = handle.options(_by_reference=True)
        return self._callers[key]

    async def measure(self, name: str, method: str) -> Any:
        """One measurement; what it says stands in `apps.Caller`."""
        if method == "bare_pings":
            address = await self._bare.start.remote()
            return await self._caller(OVER_GRPC).bare_pings.remote(address)
        contender = name.split(",")[0]
        caller = self._caller(contender)
        app = f"sink-{parse(contender).side}"
        return await getattr(caller, method).remote(contender, app)
