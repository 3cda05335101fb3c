"""A fleet of replicas and their callers in one event loop, with a network made of loopback links.

Real are the router with its line, picker and retry budget, connections, both session machines, both
pumps, admission and the execution of handlers. The links lose and delay whole messages as a network
does to them. Made up are Serve's control plane, and time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from serve_grpc._generated.replica_pb2 import Refusal
from serve_grpc._serve.replica_facts import ReplicaNews
from serve_grpc._serve.replicas import UserMethod
from serve_grpc.carriers.link import Link, LinkLost
from serve_grpc.carriers.loopback import LoopbackLink, pair
from serve_grpc.carriers.replica_pump import ReplicaPump
from serve_grpc.config import Settings
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.protocol.replica import ReplicaSession
from serve_grpc.replica.dispatcher import ReplicaDispatcher
from serve_grpc.routing.peer import ReplicaFacts
from serve_grpc.routing.retry import Backoff
from tests.unit.sessions import SECRET

__all__ = ["Adapter", "Fleet", "SimulatedReplica"]

_SETTINGS = Settings()


class SimulatedReplica:
    """What the dispatcher needs of Serve's replica, and two handlers. Is a `ReplicaAdapter`.

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
        self._sessions: dict[ReplicaPump, LoopbackLink] = {}
        self._tell: Callable[[], None] = lambda: None
        as_adapter: Any = self
        self.dispatcher = ReplicaDispatcher(as_adapter, _SETTINGS)

    @property
    def facts(self) -> ReplicaFacts:
        """What the control plane says of it."""
        return ReplicaFacts(
            self.replica_id, self.address, max_ongoing_requests=self.max_ongoing_requests
        )

    def look_quick(self) -> None:
        """As after many short requests."""
        for _ in range(1000):
            self.dispatcher.admission.standby.on_duration(0.01)

    # ------------------------------------------------------------ the life of a replica

    async def serve(self, link: LoopbackLink) -> None:
        """As `SessionHost.serve`."""
        self._epochs += 1
        session = ReplicaSession(
            replica_id=self.replica_id,
            keyring=Keyring((SECRET,)),
            nonce=b"r" * 16,
            epoch=self._epochs,
            max_ongoing_requests=self.max_ongoing_requests,
            max_message_bytes=10_000,
            input_credit=(_SETTINGS.stream_window_items, _SETTINGS.stream_window_bytes),
        )
        io = ReplicaPump(session, link, self.dispatcher)
        if self._is_draining:
            await io.refuse(Refusal.DRAINING, "shutting down")
            return
        self._sessions[io] = link
        try:
            await io.run()
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
        for link in tuple(self._sessions.values()):
            link.cut()

    # ------------------------------------------------------------ a ReplicaAdapter

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
        links: The callers' ends of those that are open.
        delay: How long a message is on its way, in seconds.
    """

    def __init__(self, rng: random.Random, longest_delay_s: float) -> None:
        self.replicas: dict[str, SimulatedReplica] = {}
        self.links: set[LoopbackLink] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.delay: Callable[[], float] = lambda: rng.uniform(0, longest_delay_s)

    async def dial(self, address: str, _: Settings) -> Link:
        """In the place of gRPC's."""
        replica = self.replicas.get(address)
        if replica is None:
            raise LinkLost("UNAVAILABLE: nobody is there")
        near, far = pair(delay=self.delay)
        self.links.add(near)
        serving = asyncio.get_running_loop().create_task(replica.serve(far))
        self._serving.add(serving)
        serving.add_done_callback(lambda done: self._on_served(done, near))
        return near

    def _on_served(self, serving: asyncio.Task[None], near: LoopbackLink) -> None:
        self._serving.discard(serving)
        self.links.discard(near)


class Adapter:
    """The control plane and Serve's accounting. Is a `RouterAdapter`."""

    deployment_name, app_name, actor_id, node_id, zone = "deployment", "app", "", "", ""
    is_configured, has_custom_request_router = True, False
    is_serve_gone, is_unavailable = False, False
    backoff = Backoff()

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._listed: dict[str, ReplicaFacts] | None = None
        self._on_change: Callable[[ReplicaNews], None] = lambda _: None
        self.queued = 0
        self.on_replicas: Counter[str] = Counter()

    def subscribe(self, on_change: Callable[[ReplicaNews], None]) -> None:
        self._on_change = on_change
        if self._listed is not None:
            on_change(ReplicaNews(tuple(self._listed.values())))

    def tell(self, replicas: Iterable[ReplicaFacts]) -> None:
        """A list of the control plane."""
        before, listed = self._listed or {}, {facts.replica_id: facts for facts in replicas}
        changed = tuple(f for key, f in listed.items() if before.get(key) != f)
        gone = tuple(key for key in before if key not in listed)
        self._listed = listed
        self._on_change(ReplicaNews(changed, gone))

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

    def on_refused(self, route: str) -> None:
        """Not counted here."""

    def on_sent(self, replica_id: str) -> None:
        self.on_replicas[replica_id] += 1

    def on_finished(self, replica_id: str) -> None:
        self.on_replicas[replica_id] -= 1
