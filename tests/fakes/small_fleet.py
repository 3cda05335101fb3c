"""One router and a few simulated replicas, on a loop whose time is virtual. No gRPC, no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from serve_grpc.caller.call import Call
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.caller.router import Router
from serve_grpc.config import Settings
from serve_grpc.handle import DeploymentHandle
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.serialization import get_serializer
from tests.property.simulated_fleet import Adapter, Fleet, SimulatedReplica
from tests.property.virtual_time import run
from tests.unit.sessions import SECRET

__all__ = ["SmallFleet", "on_small_fleet"]

PICKLE = get_serializer("pickle")


class SmallFleet:
    """To be made on a running loop. The replicas are not told to the router until `tell`.

    Args:
        count: How many replicas there are.
        slots: How many calls each runs at once.

    Attributes:
        replicas: In order; `replica-0` is the first.
        adapter: Serve's side of the router.
    """

    def __init__(self, count: int, slots: int) -> None:
        self.fleet = Fleet(random.Random(1), 0.0)
        self.replicas = [SimulatedReplica(number, slots) for number in range(count)]
        for replica in self.replicas:
            self.fleet.replicas[replica.address] = replica
        self.adapter: Any = Adapter()
        self.router = Router(self.adapter, Settings())

    def tell(self) -> None:
        """The list of those that there are reaches the router."""
        self.adapter.tell(r.facts for r in self.fleet.replicas.values())

    def unlist(self, replica: SimulatedReplica) -> None:
        """Serve says that it is gone; it goes on with what it has."""
        self.fleet.replicas.pop(replica.address, None)
        self.tell()

    def kill(self, replica: SimulatedReplica) -> None:
        """The process is gone, and Serve has not noticed."""
        del self.fleet.replicas[replica.address]
        replica.die()

    def call(
        self,
        name: str,
        bound_to: str | None = None,
        *,
        work_s: float = 10.0,
        stream: bool = False,
        timeout_s: float | None = None,
        is_idempotent: bool = False,
    ) -> Call:
        """Make a call whose handler takes so long."""
        method = "stream" if stream else "work"
        args = (name, 3, work_s) if stream else (name, work_s)
        call = Call(
            RequestFields(
                Envelope(method, "pickle", "pickle", stream, "", ""),
                PICKLE.dump_request(args, {}),
                name,
                credit_items=10,
                credit_bytes=1000,
            ),
            mailbox=self.router.mailbox,
            response_loads=PICKLE.load_response,
        )
        now_s = self.router.mailbox.loop.time()
        delivery = self.router.new_delivery(
            call,
            deadline_s=None if timeout_s is None else now_s + timeout_s,
            is_idempotent=is_idempotent,
            bound_to=bound_to,
        )
        self.router.mailbox.run(self.router.submit, delivery)
        return call

    def started(self, name: str) -> list[int]:
        """Numbers of the replicas that have begun with a call, once for each time."""
        return [n for n, r in enumerate(self.replicas) for _ in range(r.started[name])]

    def handle(self, **options: Any) -> DeploymentHandle[Any]:
        """A handle of ours on this router, by value; its calls are of `work`."""
        handle: DeploymentHandle[Any] = DeploymentHandle("deployment", "app", _router=object())
        handle._data_router = self.router
        return handle.options(method_name="work", _by_reference=False, **options)


def on_small_fleet(
    main: Callable[[SmallFleet], Coroutine[Any, Any, None]], *, count: int = 3, slots: int = 1
) -> None:
    """Run `main` with a fleet."""

    async def with_fleet(_: random.Random) -> None:
        fleet = SmallFleet(count, slots)
        await asyncio.sleep(0)  # the router starts in the loop's next turn
        with dialling_by(fleet.fleet.dial):
            await main(fleet)
        for replica in fleet.replicas:
            fleet.fleet.replicas.pop(replica.address, None)
        fleet.router.close("the test is over")

    with _no_grpc_no_ray():
        run(with_fleet, 1)


def _new_pool() -> ConnectionPool:
    return ConnectionPool(Settings())


@contextlib.contextmanager
def _no_grpc_no_ray() -> Iterator[None]:
    no_reporter = SimpleNamespace(add=lambda _: None, remove=lambda _: None)
    with (
        mock.patch("serve_grpc.caller.router.pool_of", side_effect=_new_pool),
        mock.patch("serve_grpc.caller.router.caller_metrics_of", return_value=no_reporter),
        mock.patch("serve_grpc.caller.pool.cluster_secrets", return_value=(SECRET,)),
    ):
        yield
