"""The two sides: Serve's own contenders run in processes that have never imported serve_grpc.

"serve" is what a user without this package has: plain deployments, plain callers, Serve's handles.
"serve_grpc" has the same code, opted in. So nothing of ours can slow the others down. Its callers
are there once for each carrier, as a process has one for all it calls; callees answer both.
serve_grpc is imported inside functions here, by whoever first needs it, and nowhere else that
replicas, callers or drivers of the "serve" side import; `Replica.process` tells on who did all the
same.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from bench.plan.contenders import BY_REFERENCE, GRPC_ONLY, Carrier, Contender, Side

__all__ = [
    "CarrierWatch",
    "Replica",
    "actor_options",
    "check_own_side",
    "new_handle",
    "opted_in",
    "pids_of",
]

PACKAGE = "serve_grpc"
START_S = 60.0


class Replica:
    """What every replica of the benchmark can say about itself."""

    async def process(self) -> tuple[int, Side]:
        """Id of this replica's process, and the side it is on."""
        return os.getpid(), _own_side()


def _own_side() -> Side:
    return "serve_grpc" if PACKAGE in sys.modules else "serve"


def check_own_side(side: Side) -> None:
    """Make sure that this process is what a contender of Serve's needs.

    Raises:
        RuntimeError: It is to be on Serve's side, and serve_grpc has been imported.
    """
    if side == "serve" and _own_side() != side:
        raise RuntimeError("a process that measures Serve's own transports imported serve_grpc")


def opted_in(app: Application, side: Side) -> Application:
    """The application as it is, or with all its deployments opted in to serve_grpc."""
    if side == "serve":
        return app
    import serve_grpc

    return serve_grpc.enable(app)


def actor_options(carrier: Carrier) -> dict[str, Any]:
    """For a replica whose calls travel over `carrier`; it asks for next to no CPU."""
    options: dict[str, Any] = {"num_cpus": 0.01}
    if carrier == "grpc":
        options["runtime_env"] = {"env_vars": GRPC_ONLY}
    return options


class CarrierWatch:
    """Tells what carries the calls of a handle from the time when this is made.

    Args:
        handle: One of Serve's, or one of ours to a deployment that no other handle of this event
            loop calls meanwhile.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._fallbacks = self._statistics().local_fallbacks if self._is_ours else 0

    @property
    def _is_ours(self) -> bool:
        return PACKAGE in type(self._handle).__module__

    def _statistics(self) -> Any:
        import serve_grpc

        return serve_grpc.handle_statistics(self._handle)

    def seen(self) -> str:
        """As in `Sample.carrier`; if it was more than one, all of them, with commas between."""
        if not self._is_ours:
            return ""
        now = self._statistics()
        if now.transport != PACKAGE:
            return str(now.transport)
        found = {replica.carrier for replica in now.replicas} - {""}
        if now.local_fallbacks > self._fallbacks:
            found.add("grpc")
        return ",".join(sorted(found))


def new_handle(contender: Contender, deployment: str, app: str) -> DeploymentHandle:
    """A handle with a router of its own, over the contender's transport and serializer."""
    if contender.side == "serve":
        handle = serve.get_deployment_handle(deployment, app_name=app)
    else:
        import serve_grpc

        handle = serve_grpc.get_deployment_handle(deployment, app_name=app)
    if contender.transport == BY_REFERENCE:
        return handle.options(_by_reference=True)
    return handle.options(
        _by_reference=False,
        request_serialization=contender.serializer,
        response_serialization=contender.serializer,
    )


async def pids_of(handle: DeploymentHandle, side: Side, replicas: int = 1) -> tuple[int, ...]:
    """Processes of a deployment's replicas.

    Args:
        handle: One of Serve's own, to a deployment whose class is a `Replica`.

    Raises:
        RuntimeError: There are not so many, or they are not on that side.
    """
    found: Any = (
        await handle.options(_by_reference=True)
        .broadcast("process")
        .results_async(timeout_s=START_S)
    )
    pids = tuple({pid for pid, _ in found})
    if len(pids) != replicas or {seen for _, seen in found} != {side}:
        raise RuntimeError(
            f"{handle.deployment_id} should have {replicas} replicas on the side of {side}: {found}"
        )
    return pids
