"""Peers of other versions: unknown fields and frames, newer protocols, fleets of several."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

import serve_grpc
from serve_grpc.errors import DeadlineExceededError, ServeGrpcError
from serve_grpc.protocol import handshake
from serve_grpc.protocol.outbox import Outbox
from tests.faults.calls import outcome_of
from tests.ray.apps.mixed_versions import MIXED, UNKNOWN_FIELDS
from tests.ray.waiting import eventually

ROW = 19
CALLS = 600


async def kinds_of(handle, number: int) -> Counter[str]:
    """Which kind of replica answered; or the name of the error."""

    async def one(value: int) -> str:
        try:
            kind, back = await handle.remote(value)
        except Exception as error:
            return type(error).__name__
        return kind if back == value else "misdelivered"

    return Counter(await asyncio.gather(*(one(i) for i in range(number))))


def states_of(handle) -> list[str]:
    """Of its replicas, as their caller sees them."""
    return [replica.state for replica in serve_grpc.handle_statistics(handle).replicas]


def test_a_fleet_of_several_versions_fails_no_call(deploy, tmp_path, measured):
    kinds = ["old", "new", "only new"]
    handle = deploy(MIXED.options(num_replicas=3).bind(str(tmp_path), kinds), "mixed")
    eventually(lambda: asyncio.run(kinds_of(handle, 50)) and states_of(handle).count("ready") == 2)
    seen = asyncio.run(kinds_of(handle, CALLS))
    failed = CALLS - seen["old"] - seen["new"]
    fault = "replicas of version N, N..N+1 with unknown fields, and N+1 only"
    measured(ROW, fault, f"failed of {CALLS} calls", "0", failed)
    measured(ROW, fault, "answered by", "both that speak N", dict(seen))
    assert failed == 0
    assert min(seen["old"], seen["new"]) > CALLS / 10
    states = states_of(handle)
    assert states.count("ready") == 2
    carriers = Counter(r.carrier for r in serve_grpc.handle_statistics(handle).replicas)
    assert carriers == Counter(["local", "grpc", ""])  # the lane of the newer one is another
    # The third is dialled again and again: it is lost between two tries and connecting in one.
    assert len(states) == 3
    assert set(states) - {"ready"} <= {"lost", "connecting"}


@pytest.mark.long
def test_a_newer_caller_is_understood(deploy, tmp_path, monkeypatch, measured):
    handle = deploy(MIXED.bind(str(tmp_path), ["old"]), "newer-caller")
    monkeypatch.setattr(handshake, "MAX_VERSION", handshake.MAX_VERSION + 1)
    take = Outbox.take

    def take_more(outbox):
        message = take(outbox)
        return message + UNKNOWN_FIELDS if message else message

    monkeypatch.setattr(Outbox, "take", take_more)
    seen = asyncio.run(kinds_of(handle, CALLS))
    measured(ROW, "a caller that speaks N..N+1 and sends unknown fields", "answered", CALLS, seen)
    assert seen == {"old": CALLS}


@pytest.mark.long
def test_without_a_common_version_the_refusal_is_clean(deploy, tmp_path, monkeypatch, measured):
    """The caller is told so in the log; a call ends at its deadline and did not run."""
    handle = deploy(MIXED.bind(str(tmp_path), ["only new"]), "refused")
    said = []
    logger = serve_grpc.caller.connection.logger
    monkeypatch.setattr(logger, "warning", lambda text, *args: said.append(text % args))
    with pytest.raises(DeadlineExceededError) as raised:
        handle.options(timeout_s=1).remote(1).result()
    monkeypatch.undo()
    assert raised.value.may_have_executed is False
    text = next(line for line in said if "refused the session" in line)
    measured(ROW, "a replica that speaks N+1 only", "the log says", "VERSION", text[:80])
    assert "VERSION: this replica speaks versions 2 to 2, the caller 1 to 1" in text


def fleet_without_streams(deploy, path, name):
    """One replica of this release, and one of a release that took no streams as arguments."""
    return deploy(MIXED.options(num_replicas=2).bind(path, ["old", "no streams"]), name)


def both_answer(handle) -> bool:
    kinds = asyncio.run(kinds_of(handle, 50)).keys()
    return kinds == {"old", "no streams"} and states_of(handle) == ["ready", "ready"]


def test_a_fleet_with_a_release_before_streams_refuses_them_and_nothing_else(
    deploy, tmp_path, measured
):
    handle = fleet_without_streams(deploy, str(tmp_path), "before-streams")
    eventually(lambda: both_answer(handle), timeout_s=30)
    numbers = (number for number in range(4))
    refused = 0
    for _ in range(20):
        with pytest.raises(ServeGrpcError, match="redeploy it") as raised:
            handle.total.remote(numbers)
        assert raised.value.may_have_executed is False
        refused += 1
    assert list(numbers) == [0, 1, 2, 3]  # it is still the caller's
    seen = asyncio.run(kinds_of(handle, CALLS))
    fault = "a fleet in which a replica is of a release without streams as arguments"
    measured(ROW, fault, "calls with a stream refused at `remote()`", "20 of 20", refused)
    measured(ROW, fault, f"failed of {CALLS} other calls", "0", CALLS - seen.total())
    assert seen["old"] + seen["no streams"] == CALLS


def test_the_first_call_has_its_answer_or_is_refused_whatever_replica_it_finds(deploy, tmp_path):
    """At `remote()` nothing is known yet."""
    handle = fleet_without_streams(deploy, str(tmp_path), "not-known-yet")
    closed = []

    def numbers():
        try:
            yield from range(4)
        finally:
            closed.append(True)

    outcome = asyncio.run(outcome_of("first", handle.total.remote(numbers())))
    if outcome.error is None:
        assert outcome.value == ["old", 6]
        assert eventually(lambda: closed) == [True]
    else:
        assert "redeploy it" in str(outcome.error)
        assert (outcome.kind, closed) == ("failed", [])  # nothing of it has run, here or there


def test_streams_are_taken_once_the_last_replica_of_the_old_release_is_gone(deploy, tmp_path):
    path = tmp_path / "before"
    path.mkdir()
    handle = fleet_without_streams(deploy, str(path), "upgraded")
    eventually(lambda: both_answer(handle), timeout_s=30)
    path = tmp_path / "after"
    path.mkdir()
    deploy(MIXED.options(num_replicas=2).bind(str(path), ["old"]), "upgraded")

    def answer():
        try:
            return handle.total.remote(n for n in range(4)).result(timeout_s=60)
        except ServeGrpcError:
            return None

    assert eventually(answer, timeout_s=60) == ["old", 6]
