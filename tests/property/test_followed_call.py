"""An operator follows one call through the debug log, by its request id."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serve_grpc.caller import pool as pool_module
from serve_grpc.caller import router as router_module
from serve_grpc.caller.call import Call
from serve_grpc.caller.dialling import dialling_by
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.caller.router import Router
from serve_grpc.config import LOGGER_NAME, Settings
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.serialization import get_serializer
from tests.property.simulated_fleet import Adapter
from tests.property.test_router import Weather, World
from tests.property.virtual_time import run
from tests.ray.waiting import eventually_async
from tests.unit.sessions import SECRET

PICKLE = get_serializer("pickle")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the caller's side logs while debug lines are wanted, without gRPC and Ray."""
    no_metrics = SimpleNamespace(add=lambda _: None, remove=lambda _: None)
    monkeypatch.setattr(router_module, "pool_of", lambda: ConnectionPool(Settings()))
    monkeypatch.setattr(router_module, "caller_metrics_of", lambda *_: no_metrics)
    monkeypatch.setattr(pool_module, "cluster_secrets", lambda: (SECRET,))
    said: list[str] = []
    handler = logging.Handler()
    # The simulated replica runs the package's own code here, and logs lines of its own.
    handler.addFilter(lambda record: Path(record.pathname).parent.name == "caller")
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield said
    logger.setLevel(before)
    logger.removeHandler(handler)


def test_a_call_that_is_lost_and_repeated_can_be_followed(lines: list[str]) -> None:
    async def main(rng: random.Random) -> None:
        world = World(Weather(replicas=1, max_ongoing=1), rng)
        world.join()
        adapter: Any = Adapter()
        router = Router(adapter, Settings())
        world.callers.append((router, adapter))
        world.tell()
        (replica,) = world.listed
        with dialling_by(world.fleet.dial):
            for name in ("followed", "another"):
                call = Call(
                    RequestFields(
                        Envelope("work", "pickle", "pickle", False, "", ""),
                        PICKLE.dump_request((name, 1.0), {}),
                        name,
                    ),
                    mailbox=router.mailbox,
                    response_loads=PICKLE.load_response,
                )
                router.mailbox.run(router.submit, router.new_delivery(call, is_idempotent=True))
                if name == "followed":
                    followed = call
            await eventually_async(lambda: replica.running)
            for link in tuple(world.fleet.links):
                link.cut()
            await followed.wait_done()
            assert followed.result() == "followed"
            await call.wait_done()

    run(main, 1)
    reason = next(line for line in lines if "no session: " in line).partition("no session: ")[2]
    assert reason
    start = "request followed: "
    told = [line.removeprefix(start) for line in lines if line.startswith(start)]
    assert told == [
        "waits for a replica",
        "sent to replica-0 as call 1",
        f"lost on replica-0 ({reason}); it may have started",
        "waits for a replica",
        "will be sent again",
        "sent to replica-0 as call 1",
        "ended: ok",
    ]
    start = "replica replica-0: "
    moves = [line.removeprefix(start) for line in lines if line.startswith(start)]
    assert moves[:5] == [
        "from idle to connecting",
        "from connecting to ready",
        "from ready to lost",
        f"no session: {reason}",
        "from lost to ready",
    ]
