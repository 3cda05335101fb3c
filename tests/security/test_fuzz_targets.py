"""The corpus, Hypothesis and a short run of atheris over the fuzzers' targets; floods of mutations.

`make fuzz` fuzzes for as long as it is told.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_grpc._generated.replica_pb2 import ReplicaBatch
from serve_grpc.payload import is_stored, pieces
from serve_grpc.protocol.arrival import InboundRequest
from serve_grpc.protocol.handshake import SessionState
from tests.security.attacked import attacked
from tests.security.fuzzed import (
    CALLS,
    TARGETS,
    any_target,
    check_caller,
    check_replica,
    feed,
    pair,
)
from tests.security.member import Member, legitimate, member, round_trips
from tests.security.mutations import caller_message, chance, damage, replica_message

ROOT = Path(__file__).resolve().parent.parent.parent
CORPUS = Path(__file__).parent / "corpus"
SHORT, LONG = 20_000, 1_000_000
SESSION_MESSAGES = 50


def test_the_corpus_finds_nothing() -> None:
    paths = sorted(CORPUS.iterdir())
    assert len(paths) > 50
    for path in paths:
        any_target(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_documented_error(target: Any, data: bytes) -> None:
    target(data)


def test_a_bounded_run_of_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris has no wheel for this Python; Hypothesis runs above")
    command = [sys.executable, "-m", "tests.security.fuzz", "5"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Done" in run.stderr


def mutated(make: Any, rng: random.Random) -> bytes:
    message: bytes = make(chance(rng), CALLS)
    return damage(chance(rng), message) if rng.random() < 0.5 else message


def kind_of_payload(request: InboundRequest) -> str:
    """Where the bytes of a request are."""
    if is_stored(request.payload):
        return "stored"
    parts = pieces(request.payload)
    return "memory" if any(isinstance(part, memoryview) for part in parts) else "stream"


def flood(count: int, seed: int) -> Counter[str]:
    """`count` mutated messages to each machine; beside each a session of another peer works on."""
    outcomes: Counter[str] = Counter()
    rng = random.Random(seed)
    bystander, its_replica = pair()
    for name, make in (("replica", caller_message), ("caller", replica_message)):
        machine: Any = None
        ended: set[Any] = set()
        for number in range(count):
            if machine is None or number % SESSION_MESSAGES == 0:
                machine = pair()[name == "replica"]
                ended = set()
            heard = feed(machine, mutated(make, rng))
            if name == "replica":
                check_replica(machine, heard)
                outcomes.update(map(kind_of_payload, heard.requests if heard else ()))
            else:
                check_caller(machine, heard, ended)
            outcomes["refused" if heard is None else "taken"] += 1
            if heard is None or machine.state is SessionState.CLOSED:
                machine.close()
                machine = None
            if number % 1000 == 0:
                bystander.ping(number % 100 + 1)
                its_replica.receive(bystander.outbox.take())
                message = its_replica.outbox.take()
                bystander.receive(message)
                assert ReplicaBatch.FromString(message).pong == number % 100 + 1
    return outcomes


def test_mutated_frames_break_neither_machine() -> None:
    outcomes = flood(SHORT // 2, seed=1)
    assert min(outcomes["taken"], outcomes["refused"]) > SHORT // 20
    assert min(outcomes["stored"], outcomes["memory"], outcomes["stream"]) > 5


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_million_mutated_frames_break_neither_machine() -> None:
    outcomes = flood(LONG // 2, seed=2)
    print(dict(outcomes))
    assert outcomes["taken"] + outcomes["refused"] == LONG


async def _attack(hostile: Member, rng: random.Random) -> int:
    """Mutated messages over one session until the replica has enough of it; how many."""
    reading = asyncio.ensure_future(hostile.read_to_end())
    sent = 0
    while sent < SESSION_MESSAGES and not reading.done():
        try:
            await asyncio.wait_for(hostile.write(mutated(caller_message, rng)), 10)
        except (asyncio.InvalidStateError, grpc.aio.UsageError, grpc.aio.AioRpcError):
            break  # the replica ended the session, as it should
        sent += 1
    await asyncio.wait([reading], timeout=0.02)
    reading.cancel()
    return sent


async def _flood_a_server(count: int) -> int:
    """Mutated messages over real sessions; the calls of another peer all succeed meanwhile."""
    rng = random.Random(3)
    sent = sessions = 0
    with attacked() as replica:
        async with legitimate(replica.port) as (connection, chooser):
            working = asyncio.ensure_future(round_trips(connection, chooser, 10**9))
            while sent < count:
                sessions += 1
                async with member(replica.port) as hostile:
                    sent += await _attack(hostile, rng)
                assert not working.done(), working
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            assert len(await round_trips(connection, chooser, 20)) == 20
            for _ in range(200):
                if (await replica.state()).handlers == 0:
                    return sessions
                await asyncio.sleep(0.05)
    raise AssertionError("handlers of hostile sessions are left")


def test_mutated_frames_have_no_effect_on_another_peers_calls() -> None:
    assert asyncio.run(_flood_a_server(300)) > 10


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_mutated_frames_have_no_effect_on_another_peers_calls() -> None:
    assert asyncio.run(_flood_a_server(10_000)) > 100
