"""The application of the HTTP cases: A, the ingress, calls B, and B calls C.

One application serves every contender of a side, see `sides.py`: a header of the request names it,
and A and B keep one handle for each. So contenders can take turns against one running Serve
instance, and all but the inner calls (HTTP, ingress, access log, metrics) is the same code.
"""

from __future__ import annotations

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from bench.contenders import Side, parse
from bench.sides import Replica, check_own_side, new_handle, opted_in

__all__ = ["HEADER", "app_of", "build", "expected"]

HEADER = "x-contender"
OPTIONS = {
    "max_ongoing_requests": 200,  # more than wrk's connections: nobody is turned away
    "ray_actor_options": {"num_cpus": 0.01},  # two chains are to fit beside the proxy
}


def app_of(side: Side) -> str:
    """Name of a side's application."""
    return f"http-{side}"


def build(side: Side) -> Application:
    """The whole chain of a side, to be run under the name `app_of(side)`."""
    return opted_in(A.bind(B.bind(C.bind(), app_of(side)), app_of(side)), side)


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

    async def ask_next(self, contender: str) -> str:
        """Call the next replica over `contender`, with its name as the argument."""
        handle = self._handles.get(contender)
        if handle is None:
            who = parse(contender)
            check_own_side(who.side)
            handle = self._handles[contender] = new_handle(who, self._callee, self._app)
        return await handle.remote(contender)


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
