"""Peers of other versions: unknown fields and frames, newer protocols, fleets of several."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

import serve_grpc
from serve_grpc.errors import DeadlineExceededError
from serve_grpc.protocol import handshake
from serve_grpc.protocol.outbox import Outbox
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
