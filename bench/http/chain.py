"""The application of the HTTP cases: A, the ingress, calls B, and B calls C.

One application serves every contender of a side, and of a carrier, see `on_serve/sides.py`: a
header of the request names it, and A and B keep one handle for each. So contenders can take turns
against one running Serve instance, and all but the inner calls (HTTP, ingress, access log, metrics)
is the same code.
"""

from __future__ import annotations

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from bench.on_serve.sides import (
    CarrierWatch,
    Replica,
    actor_options,
    check_own_side,
    new_handle,
    opted_in,
)
from bench.plan.contenders import BY_REFERENCE, OURS, OVER_GRPC, Contender, parse

__all__ = ["CHAINS", "HEADER", "app_of", "build", "expected"]

HEADER = "x-contender"
OPTIONS = {
    "max_ongoing_requests": 200,  # more than wrk's connections: nobody is turned away
    "ray_actor_options": actor_options(""),  # all chains are to fit beside the proxy
}
CHAINS = tuple(map(parse, (BY_REFERENCE, OURS, OVER_GRPC)))
"""A contender of each application."""


def app_of(who: Contender) -> str:
    """Name of the application that a contender travels through."""
    return f"http-{who.side}-{who.carrier}".removesuffix("-")


def build(who: Contender) -> Application:
    """The whole chain of a contender, to be run under the name `app_of(who)`."""
    app = app_of(who)
    a, b = (hop.options(ray_actor_options=actor_options(who.carrier)) for hop in (A, B))
    return opted_in(a.bind(b.bind(C.bind(), app), app), who.side)


def expected(contender: str) -> str:
    """What a request answers."""
    return f"A(B(C({contender})))"


class Hop(Replica):
    """A replica that calls the next one.

    Args:
        callee: Of the next deployment. Only its name is used: the handles are made here.
        app: Name of the application.
    """

    def __init__(self, callee: DeploymentHandle, app: str) -> None:
        self._callee = callee.deployment_name
        self._app = app
        self._handles: dict[str, DeploymentHandle] = {}
        self._watches: dict[str, CarrierWatch] = {}

    async def ask_next(self, contender: str) -> str:
        """Call the next replica over `contender`, with its name as the argument."""
        handle = self._handles.get(contender)
        if handle is None:
            who = parse(contender)
            check_own_side(who.side)
            handle = self._handles[contender] = new_handle(who, self._callee, self._app)
            self._watches[contender] = CarrierWatch(handle)
        return await handle.remote(contender)

    async def carrier(self, contender: str) -> str:
        """What has carried the calls to the next replica over `contender`, from the first on."""
        return self._watches[contender].seen()


@serve.deployment(**OPTIONS)
class C(Replica):
    """The end of the chain."""

    async def __call__(self, contender: str) -> str:
        return f"C({contender})"


@serve.deployment(**OPTIONS)
class B(Hop):
    """The middle."""

    async def __call__(self, contender: str) -> str:
        return f"B({await self.ask_next(contender)})"


@serve.deployment(**OPTIONS)
class A(Hop):
    """The ingress."""

    async def __call__(self, request: Request) -> str:
        return f"A({await self.ask_next(request.headers[HEADER])})"
