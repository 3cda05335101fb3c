"""A fleet of replicas and their callers in one event loop, with a network made of queues.

Real are the router with its row, picker and retry budget, connections, both session machines, both
writers, admission and the execution of handlers. Made up are gRPC's streams, which lose and delay
whole messages as a network does to them, Serve's control plane, and time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import grpc

from serve_grpc._generated.replica_pb2 import Refusal
from serve_grpc._serve.replicas import UserMethod
from serve_grpc._serve.routers import ReplicaSet
from serve_grpc.config import Settings
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.protocol.replica import ReplicaSession
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.routing.peer import ReplicaFacts
from serve_grpc.routing.retry import Backoff
from serve_grpc.transport.server import SessionStream
from tests.unit.sessions import SECRET

__all__ = ["Access", "Fleet", "SimulatedReplica"]

WINDOW = 4
"""Messages that a stream takes before its writer waits."""


class _Pipe:
    """One direction of a stream: messages in order, each a while on its way."""

    def __init__(self, delay: Callable[[], float]) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay = delay
        self._due_s = 0.0
        self._on_way = 0
        self._arrived: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._is_ended = False
        self.is_broken = False

    async def write(self, message: bytes) -> None:
        """Send; waits while the other side takes nothing."""
        while not self.is_broken and self._on_way >= WINDOW:
            await self._wait()
        if self.is_broken:
            raise _unavailable()
        self._on_way += 1
        # Timers of one time run in any order; messages stay in theirs.
        self._due_s = max(self._due_s + 1e-6, self._loop.time() + self._delay())
        self._loop.call_at(self._due_s, self._arrive, message)

    def _arrive(self, message: bytes) -> None:
        if not self.is_broken:
            self._arrived.append(message)
            self._changed.set()

    async def read(self) -> bytes:
        """The next message."""
        while not self._arrived:
            if self.is_broken:
                raise _unavailable()
            if self._is_ended:
                return grpc.aio.EOF  # type: ignore[no-any-return]
            await self._wait()
        self._on_way -= 1
        self._changed.set()
        return self._arrived.popleft()

    def end(self) -> None:
        """Nothing follows what is on its way."""
        self._loop.call_at(max(self._due_s + 1e-6, self._loop.time()), self._end)

    def _end(self) -> None:
        self._is_ended = True
        self._changed.set()

    def cut(self) -> None:
        """Lose what is on its way, and let nothing more pass."""
        self.is_broken = True
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _unavailable() -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty, details="cut")


class _Stream:
    """One session's stream, as the caller's `grpc.aio` call and channel."""

    def __init__(self, fleet: Fleet, replica: SimulatedReplica | None) -> None:
        self._fleet = fleet
        self._replica = replica
        self._up, self._down = _Pipe(fleet.delay), _Pipe(fleet.delay)
        self._handler: asyncio.Task[None] | None = None
        if replica is None:
            self._up.cut()
            self._down.cut()
        else:
            fleet.streams.add(self)
            self._handler = asyncio.get_running_loop().create_task(replica.serve(self))
            self._handler.add_done_callback(lambda _: self._down.end())
        # What `context` and `call` of gRPC do.
        self.server = SimpleNamespace(read=self._up.read, write=self._down.write)
        self.write, self.read = self._up.write, self._down.read

    async def code(self) -> grpc.StatusCode:
        """Only asked at the end of a stream that was not cut; there is none."""
        return grpc.StatusCode.OK

    def cancel(self) -> None:
        """The caller is done with it."""
        self.cut()

    def cut(self) -> None:
        """Both sides lose it, the replica a little later."""
        self._fleet.streams.discard(self)
        self._up.cut()
        self._down.cut()
        if self._handler is not None:
            asyncio.get_running_loop().call_later(self._fleet.delay(), self._handler.cancel)


class SimulatedReplica:
    """What the dispatcher needs of Serve's replica, and two handlers. Is a `ReplicaAccess`.

    Attributes:
        started, ended: How often each call's handler did, by name.
        most_running: The most slots that were taken at once.
    """

    app_name, deployment_name = "app", "deployment"
    is_shutting_down = False

    def __init__(self, number: int, max_ongoing_requests: int) -> None:
        self.replica_id, self.address = f"replica-{number}", f"replica-{number}:1"
        self.max_ongoing_requests = max_ongoing_requests
        self.main_loop = self.user_loop = asyncio.get_running_loop()
        self.running = self.most_running = 0
        self.started: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self._is_draining = False
        self._epochs = 0
        self._sessions: dict[SessionStream, _Stream] = {}
        self._tell: Callable[[], None] = lambda: None
        as_access: Any = self
        self.dispatcher = ReplicaDispatcher(as_access, Settings())

    @property
    def facts(self) -> ReplicaFacts:
        """What the control plane says of it."""
        return ReplicaFacts(
            self.replica_id, self.address, max_ongoing_requests=self.max_ongoing_requests
        )

    def look_quick(self) -> None:
        """As after many short requests."""
        for _ in range(1000):
            self.dispatcher._standby.on_duration(0.01)

    # ------------------------------------------------------------ the life of a replica

    async def serve(self, stream: _Stream) -> None:
        """As `ReplicaServer._session`."""
        self._epochs += 1
        session = ReplicaSession(
            replica_id=self.replica_id,
            keyring=Keyring((SECRET,)),
            nonce=b"r" * 16,
            epoch=self._epochs,
            max_ongoing_requests=self.max_ongoing_requests,
            max_message_bytes=10_000,
        )
        if self._is_draining:
            session.refuse(Refusal.DRAINING, "shutting down")
            await stream.server.write(session.outbox.take())
            return
        io = SessionStream(session, stream.server, self.dispatcher)
        self._sessions[io] = stream
        try:
            await io.run()
        except grpc.aio.AioRpcError:
            pass  # gRPC's server cancels the handler instead
        finally:
            del self._sessions[io]

    def drain(self) -> None:
        """Take no more requests."""
        self._is_draining = True
        for io in self._sessions:
            io.session.drain()
            io.kick()

    def die(self) -> None:
        """As SIGKILL: what runs is gone, and nobody is told but by the broken streams."""
        for stream in tuple(self._sessions.values()):
            stream.cut()

    # ------------------------------------------------------------ a ReplicaAccess

    def ongoing(self) -> int:
        return self.running

    def try_admit(self) -> bool:
        if self.running >= self.max_ongoing_requests:
            return False
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        return True

    def try_claim(self, _: str) -> bool:
        return False

    def release(self) -> None:
        self.running -= 1
        self._tell()

    def on_slot_released(self, callback: Callable[[], None]) -> None:
        self._tell = callback

    def record(self, **_: Any) -> None:
        """Serve's metrics and log."""

    def method(self, name: str) -> UserMethod:
        function = {"work": self._work, "stream": self._stream}[name]
        return UserMethod(name, function, is_coroutine=name == "work", in_thread=False)

    # ------------------------------------------------------------ handlers

    async def _work(self, name: str, work_s: float) -> str:
        self.started[name] += 1
        await asyncio.sleep(work_s)
        self.ended[name] += 1
        return name

    async def _stream(self, name: str, items: int, pause_s: float) -> AsyncIterator[str]:
        self.started[name] += 1
        for number in range(items):
            yield f"{name}/{number}"
            await asyncio.sleep(pause_s)
        self.ended[name] += 1


class Fleet:
    """The replicas that there are, and the way to them.

    Attributes:
        replicas: By address; one that is taken out is a machine that is gone.
        streams: Those that are open.
        delay: How long a message is on its way, in seconds.
    """

    def __init__(self, rng: random.Random, longest_delay_s: float) -> None:
        self.replicas: dict[str, SimulatedReplica] = {}
        self.streams: set[_Stream] = set()
        self.delay: Callable[[], float] = lambda: rng.uniform(0, longest_delay_s)

    def open_channel(self, address: str, _: Settings) -> Any:
        """In the place of the transport's."""

        async def close() -> None:
            """A channel of queues has nothing to close."""

        replica = self.replicas.get(address)
        return SimpleNamespace(
            stream_stream=lambda *_, **__: lambda: _Stream(self, replica), close=close
        )


class Access:
    """The control plane and Serve's accounting. Is a `RouterAccess`."""

    deployment_name, app_name, actor_id, node_id, zone = "deployment", "app", "", "", ""
    is_configured, has_custom_request_router = True, False
    is_serve_gone, is_unavailable = False, False
    backoff = Backoff()

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._replicas: ReplicaSet | None = None
        self._on_change: Callable[[ReplicaSet], None] = lambda _: None
        self.queued = 0
        self.on_replicas: Counter[str] = Counter()

    def subscribe(self, on_change: Callable[[ReplicaSet], None]) -> None:
        self._on_change = on_change
        if self._replicas is not None:
            on_change(self._replicas)

    def tell(self, replicas: ReplicaSet) -> None:
        """News of the control plane."""
        self._replicas = replicas
        self._on_change(replicas)

    def carry_requests(self, _: Any) -> None:
        """No requests of Serve's own router here."""

    def ask_for_first_replica(self) -> None:
        """No autoscaler here."""

    def refusal(self, *, is_full: bool, room_to_come: Callable[[], int]) -> None:
        """No limit of waiting calls here."""

    def on_queued(self) -> None:
        self.queued += 1

    def on_unqueued(self) -> None:
        self.queued -= 1

    def on_call(self, route: str, app_name: str) -> None:
        """Not counted here."""

    def on_routed(self, route: str) -> None:
        """Not counted here."""

    def on_sent(self, replica_id: str) -> None:
        self.on_replicas[replica_id] += 1

    def on_finished(self, replica_id: str) -> None:
        self.on_replicas[replica_id] -= 1
