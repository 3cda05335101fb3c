"""A process with many callers of one replica, or with one of many; each caller has its own pool.

A caller makes one call over each session, as soon as that is open, and notes when it was answered
and what went wrong before. Times are those of `time.monotonic`, which processes of a machine share.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Any

from bench.growth.server import allow_open_files
from bench.idle_sessions.callers import ENVELOPE, facts_of, over
from bench.idle_sessions.processes import PATIENCE_S
from bench.idle_sessions.replicas import Doors
from bench.stand_ins.lone_router import LoneRouter
from serve_grpc._generated.replica_pb2 import Error
from serve_grpc.caller.connection import Connection
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.pool import ConnectionPool
from serve_grpc.config import Settings
from serve_grpc.protocol.caller import RequestFields
from serve_grpc.routing.peer import PeerState, ReplicaFacts

__all__ = ["Story", "run_storm_callers"]

FILES_PER_SESSION = 2
FILES_BESIDE = 256


@dataclass
class Story:
    """What a caller saw of one session.

    Attributes:
        troubles: When a session was lost or could not be opened, and why.
        answered_s: When its call over the next one was answered; 0 for not yet.
    """

    troubles: list[tuple[float, str]] = field(default_factory=list)
    answered_s: float = 0.0


class _Session(LoneRouter):
    def __init__(self, pool: ConnectionPool, facts: ReplicaFacts) -> None:
        super().__init__()
        self.connection = pool.acquire(facts, self)
        self.story = Story()
        self.answered = asyncio.Event()
        self._times = 0
        self._was_ready = False

    def on_change(self, connection: Connection) -> None:
        trouble, is_ready = connection.trouble, connection.peer.state is PeerState.READY
        if trouble.times > self._times:
            self.story.troubles.append((time.monotonic(), trouble.reason))
        self._times = trouble.times
        if is_ready and not self._was_ready:
            delivery = self.new_delivery(RequestFields(ENVELOPE, b"x" * 100, "request"))
            assert delivery.send(connection)
        self._was_ready = is_ready

    def on_answered(self, delivery: Delivery, connection: Connection, error: Error | None) -> None:
        super().on_answered(delivery, connection, error)
        self.story.answered_s = time.monotonic()
        self.answered.set()

    def next_story(self) -> None:
        self.story = Story()
        self.answered.clear()


def run_storm_callers(pipe: Pipe, replicas: list[Doors], callers: int, carrier: str) -> None:
    """Child process: make the callers and say so, then do what it is told.

    Args:
        pipe: Told "dial" for the first sessions, "wait" for an answer when a call over each was
            answered, with all stories, which begin anew then, and how often the secret was read.
        replicas: Each caller has a session to each of them.
        callers: How many.
        carrier: Of all sessions.
    """
    allow_open_files(FILES_BESIDE + len(replicas) * callers * FILES_PER_SESSION)
    with over(carrier) as read:
        asyncio.run(_run(pipe, replicas, callers, carrier, read))


async def _run(pipe: Pipe, replicas: list[Doors], callers: int, carrier: str, read: Any) -> None:
    loop = asyncio.get_running_loop()
    pools = [ConnectionPool(Settings()) for _ in range(callers)]
    facts = [facts_of(doors, carrier, number) for number, doors in enumerate(replicas)]
    sessions = [_Session(pool, one) for pool in pools for one in facts]
    pipe.send(None)
    while True:
        try:
            command = await loop.run_in_executor(None, pipe.recv)
        except EOFError:
            break
        if command == "dial":
            for session in sessions:
                session.connection.connect()
        elif command == "wait":
            waiting = asyncio.gather(*(session.answered.wait() for session in sessions))
            await asyncio.wait_for(waiting, PATIENCE_S)
            pipe.send(([session.story for session in sessions], read.call_count))
            read.reset_mock()
            for session in sessions:
                session.next_story()
    await asyncio.gather(*(pool.aclose() for pool in pools))
