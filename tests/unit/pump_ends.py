"""Both ends of a link in memory with the pumps on them, for tests of the pumps and of the host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from serve_grpc.carriers.caller_pump import CallerPump
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.link import Dial, Link
from serve_grpc.carriers.loopback import LoopbackLink, loopback_dial
from serve_grpc.carriers.replica_pump import ReplicaPump
from serve_grpc.config import Settings
from serve_grpc.payload import joined
from serve_grpc.protocol.caller import CallerSession, Received
from serve_grpc.protocol.handshake import SessionState
from tests.behaviour.serving import Echo
from tests.ray.waiting import eventually_async
from tests.unit.sessions import UNARY, fields, new_caller, new_replica

HOLD = UNARY._replace(method="hold")

__all__ = ["HOLD", "Caller", "Replica", "run"]


class Caller:
    """A session of a caller and its pump; what the owner was told."""

    def __init__(self, dial: Dial, **changes: Any) -> None:
        self.session: CallerSession[Any] = new_caller(**changes)
        self.answers: dict[Any, bytes] = {}
        self.closed: list[BaseException | str] = []
        self.counters = Counters()
        self.on_message: Callable[[bytes], None] = self._receive
        self.pump = CallerPump(
            self.session,
            "somewhere:1",
            Settings(),
            dial,
            on_message=lambda data: self.on_message(data),
            on_closed=self.closed.append,
            counters=self.counters,
        )
        self.pump.start()

    def _receive(self, data: bytes) -> None:
        received: Received[Any] = Received()
        self.session.receive(data, received)
        for event in received.events:
            self.answers[event.call] = joined(event.payload)

    async def opened(self) -> Caller:
        await eventually_async(lambda: self.session.state is SessionState.OPEN)
        return self

    def ask(self, name: str, payload: bytes = b"", envelope: Any = UNARY) -> None:
        self.session.request(name, fields(payload, envelope))
        self.pump.kick()

    async def end(self) -> BaseException | str:
        """Wait until it is over; what the owner was told, once."""
        await self.pump.wait_closed()
        (reason,) = self.closed
        return reason


class Replica:
    """Serves links without a host. `links` are its ends, `streams` its pumps."""

    def __init__(self, **stream_arguments: Any) -> None:
        self.echo = Echo()
        self.links: list[LoopbackLink] = []
        self.streams: list[ReplicaPump] = []
        self._arguments = stream_arguments
        self.dial = loopback_dial(self._serve)

    async def _serve(self, link: Link) -> None:
        assert isinstance(link, LoopbackLink)
        self.links.append(link)
        self.streams.append(ReplicaPump(new_replica(), link, self.echo, **self._arguments))
        await self.streams[-1].run()


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, 30))
