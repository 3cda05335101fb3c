"""What a large payload must not do: keep small calls waiting, or hold an event loop."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from anyio import to_thread

from serve_grpc._generated.replica_pb2 import ReplicaBatch
from serve_grpc.caller import call as call_module
from serve_grpc.caller.outcomes import Result
from serve_grpc.caller.replicas import Replicas
from serve_grpc.protocol.outbox import LARGEST_WAITING, Outbox
from serve_grpc.replica import user_code as user_code_module
from serve_grpc.replica.executor import Executor
from serve_grpc.response import ByValueResponse, ByValueResponseGenerator
from serve_grpc.routing.peer import Peer, PeerState, ReplicaFacts
from tests.ray.waiting import eventually_async
from tests.unit.sessions_loop import TransportLoop
from tests.unit.test_executor import OneMethod, Outcomes, invocation

BOUND = 1000


def outbox_with(large: list[int], small: int = 0) -> Outbox[ReplicaBatch]:
    """One with large payloads of these sizes, and so many bytes in small frames."""
    outbox = Outbox(ReplicaBatch)
    for call_id, size in enumerate(large):
        outbox.send_large(call_id, b"x" * size, lambda: None)
    if small:
        outbox.added(small)
    return outbox


@pytest.mark.parametrize(
    ("large", "small", "is_clogged"),
    [
        ([], BOUND // 2, False),
        ([], 2 * BOUND, True),
        ([BOUND // 5] * 4, 0, False),
        ([BOUND // 5] * 6, 0, True),
        ([50 * BOUND], 0, False),
        ([50 * BOUND] * LARGEST_WAITING, 0, False),
        ([50 * BOUND] * (LARGEST_WAITING + 1), 0, True),
        ([50 * BOUND, 10], 2 * BOUND, False),
    ],
)
def test_what_clogs_an_outbox(large: list[int], small: int, is_clogged: bool) -> None:
    assert outbox_with(large, small).is_clogged(BOUND) is is_clogged


class Pool:
    """Gives a connection to each replica; those of `clogged` take no more bytes."""

    def __init__(self, clogged: set[str]) -> None:
        self.clogged = clogged

    def acquire(self, facts: ReplicaFacts, _: Any) -> Any:
        peer = Peer(facts)
        peer.state = PeerState.READY
        takes = facts.replica_id not in self.clogged
        return SimpleNamespace(peer=peer, takes_bytes=takes, takes_calls=takes)


@pytest.mark.parametrize(
    ("clogged", "expected"), [({"a"}, {"b"}), ({"b"}, {"a"}), ({"a", "b"}, {None}), (set(), {"a"})]
)
def test_a_call_goes_past_a_replica_that_megabytes_wait_for(
    clogged: set[str], expected: set[str | None]
) -> None:
    pool: Any = Pool(clogged)
    user: Any = None
    replicas = Replicas(pool, user, node_id="", zone="")
    both = [ReplicaFacts(name, f"{name}:1", max_ongoing_requests=9) for name in "ab"]
    replicas.update(both, ())
    for peer in replicas.peers:
        peer.in_flight = peer.facts.replica_id == "b"  # so that it is not picked first
    picked = [replicas.pick("") for _ in range(5)]
    assert {c.peer.facts.replica_id if c is not None else None for c in picked} == expected


class Notes:
    """Remembers which thread unpickled it."""

    threads: tuple[int, ...] = ()

    def __setstate__(self, _: Any) -> None:
        type(self).threads += (threading.get_ident(),)

    def __getstate__(self) -> Any:
        return b"x" * 100


@pytest.mark.parametrize(("on_loop_bytes", "is_on_loop"), [(10, False), (10_000, True)])
def test_large_arguments_are_read_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, on_loop_bytes: int, is_on_loop: bool
) -> None:
    monkeypatch.setattr(user_code_module, "ON_LOOP_BYTES", on_loop_bytes)
    monkeypatch.setattr(Notes, "threads", ())

    async def handler(notes: Notes) -> str:
        return type(notes).__name__

    async def run() -> Outcomes:
        outcomes = Outcomes()
        replica: Any = OneMethod(handler)
        Executor(replica, outcomes, 10**6).submit([invocation(1, Notes())])
        await eventually_async(lambda: outcomes.by_id)
        return outcomes

    (outcome,) = asyncio.run(run()).by_id[1]
    assert outcome.error is None
    assert (Notes.threads == (threading.get_ident(),)) is is_on_loop
    assert len(Notes.threads) == 1


def test_large_arguments_are_read_while_the_users_threads_are_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(user_code_module, "ON_LOOP_BYTES", 10)
    go = threading.Event()

    async def handler(notes: Notes) -> str:
        return type(notes).__name__

    async def run() -> Outcomes:
        outcomes = Outcomes()
        replica: Any = OneMethod(handler)
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        to_thread.current_default_thread_limiter().total_tokens = 1
        busy = [loop.run_in_executor(None, go.wait), loop.create_task(to_thread.run_sync(go.wait))]
        try:
            Executor(replica, outcomes, 10**6).submit([invocation(1, Notes())])
            await eventually_async(lambda: outcomes.by_id)
        finally:
            go.set()
            await asyncio.gather(*busy)
        return outcomes

    (outcome,) = asyncio.run(run()).by_id[1]
    assert outcome.error is None


@pytest.mark.parametrize(("on_loop_bytes", "is_on_loop"), [(10, False), (10_000, True)])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_large_result_or_item_is_read_in_a_thread_of_ours(
    transport: TransportLoop,
    monkeypatch: pytest.MonkeyPatch,
    on_loop_bytes: int,
    is_on_loop: bool,
    is_stream: bool,
) -> None:
    monkeypatch.setattr(call_module, "ON_LOOP_BYTES", on_loop_bytes)
    monkeypatch.setattr(Notes, "threads", ())
    call, stream = transport.new_call(), transport.new_stream()
    transport.run(call.end, Result(pickle.dumps(Notes())))
    transport.run(stream.add_item, pickle.dumps(Notes()))

    async def once() -> object:
        busy, loop = threading.Event(), asyncio.get_running_loop()
        jobs = [loop.run_in_executor(None, busy.wait) for _ in range(64)]
        try:
            if is_stream:
                return await ByValueResponseGenerator(stream).__anext__()
            return await ByValueResponse(call)
        finally:
            busy.set()
            await asyncio.gather(*jobs)

    assert type(asyncio.run(once())) is Notes
    assert (Notes.threads == (threading.get_ident(),)) is is_on_loop
    assert len(Notes.threads) == 1


def test_an_item_whose_consumer_gives_up_while_it_is_read_is_not_lost(
    transport: TransportLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_module, "ON_LOOP_BYTES", 0)
    may_load, is_loading = threading.Event(), threading.Event()

    def load(payload: bytes) -> bytes:
        is_loading.set()
        may_load.wait()
        return payload

    stream = transport.new_stream(response_loads=load)
    for item in (b"first", b"second"):
        transport.run(stream.add_item, item)
    transport.run(stream.end, Result(b""))

    async def consume() -> list[Any]:
        response: ByValueResponseGenerator[bytes] = ByValueResponseGenerator(stream)
        waiting = asyncio.ensure_future(response.__anext__())
        await eventually_async(is_loading.is_set)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        may_load.set()
        return [item async for item in response]

    assert asyncio.run(consume()) == [b"first", b"second"]


def test_an_item_is_granted_once_however_often_it_is_read(
    transport: TransportLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_module, "ON_LOOP_BYTES", 0)
    may_load = threading.Event()

    def load(payload: bytes) -> bytes:
        may_load.wait()
        return payload

    stream = transport.new_stream(response_loads=load)
    transport.run(stream.add_item, b"i" * 20)

    async def consume() -> None:
        response: ByValueResponseGenerator[bytes] = ByValueResponseGenerator(stream)
        for _ in range(5):  # 100 bytes, the window
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(response.__anext__(), 0.001)
        may_load.set()
        assert await response.__anext__() == b"i" * 20

    asyncio.run(consume())
    transport.run(lambda: None)
    assert transport.grants == []
