"""The two sides: Serve's own contenders run in processes that have never imported serve_grpc.

"serve" is what a user without this package has: plain deployments, plain callers, Serve's handles.
"serve_grpc" has the same code, opted in. So nothing of ours can slow the others down. serve_grpc is
imported inside functions here, by whoever first needs it, and nowhere else that replicas, callers
or drivers of the "serve" side import; `Replica.process` tells on who did all the same.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from bench.contenders import BY_REFERENCE, Contender, Side

__all__ = ["Replica", "check_own_side", "new_handle", "opted_in", "pids_of"]

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
