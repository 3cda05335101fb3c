"""Payloads that are huge, too large, or break where they are read; and the calls beside them."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from serve_grpc.errors import MessageTooLargeError, SerializationError
from tests.faults.fleet import watched_handle
from tests.ray.apps.watched import Breaks

LIMIT = 4 * 1024 * 1024
SMALL_P99_MS = 50
QUIET_P99_MS = 5
"""Of small calls with nothing beside them, on a machine that is left alone. On one that is not,
p99 tells of others; then it is recorded, and must be far from the 1.1 s of a whole payload."""
BUSY_P99_MS = 500
OTHERS = 400


@pytest.mark.long
@pytest.mark.timeout(300)
def test_small_calls_pass_between_the_fragments_of_large_ones(run_script, measured):
    """The limit is raised by the variable, on a Ray of its own. The best of two turns counts."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(2):
        env = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "200000000"}
        seen = json.loads(run_script("large_payloads", env=env, timeout_s=120).splitlines()[-1])
        for kind, figures in seen.items():
            if kind not in best or figures["p99"] < best[kind]["p99"]:
                best[kind] = figures
        if all(figures["p99"] <= SMALL_P99_MS for figures in best.values()):
            break
    for kind, figures in best.items():
        fault = f"100 B beside 100 MB, {kind} at once"
        value = f"{figures['p99']:.0f} ms (p50 {figures['p50']:.1f} ms)"
        # With two large ones at once the figure is written down, and nothing more.
        asserted = "" if kind.endswith(" 1") else ", not asserted"
        measured(16, fault, "small p99", f"≤ {SMALL_P99_MS} ms{asserted}", value)
    assert all(figures["large"] > 3 for kind, figures in best.items() if kind != "none 1")
    one_at_once = {kind: f["p99"] for kind, f in best.items() if kind.endswith(" 1")}
    is_quiet = best["none 1"]["p99"] <= QUIET_P99_MS
    assert max(one_at_once.values()) <= (SMALL_P99_MS if is_quiet else BUSY_P99_MS), best


@pytest.fixture(scope="module")
def handle(serve_instance):
    return watched_handle()


async def items_of(stream: Any) -> list[Any]:
    return [item async for item in stream]


def bad_calls(handle: Any) -> list[tuple[str, Any, type[BaseException]]]:
    """What it is, how to await it, how it must end."""
    stream = handle.options(stream=True)
    return [
        ("request over the limit", lambda: handle.length.remote(b"x" * (LIMIT + 1)), TooLarge),
        ("reply over the limit", lambda: handle.blob.remote(LIMIT + 1), TooLarge),
        (
            "item over the limit",
            lambda: items_of(stream.breaking_items.remote(3, LIMIT + 1)),
            TooLarge,
        ),
        ("undecodable request", lambda: handle.echo.remote(Breaks(ValueError("x"))), Unreadable),
        (
            "MemoryError in the replica",
            lambda: handle.echo.remote(Breaks(MemoryError())),
            Unreadable,
        ),
        ("unserializable request", lambda: handle.echo.remote(threading.Lock()), Unreadable),
        ("undecodable reply", lambda: handle.breaks.remote("value"), Unreadable),
        ("MemoryError at the caller", lambda: handle.breaks.remote("memory"), Unreadable),
        ("undecodable exception", lambda: handle.breaks.remote("raise"), RayTaskError),
    ]


TooLarge, Unreadable = MessageTooLargeError, SerializationError


def test_a_payload_that_breaks_fails_its_own_call_alone(handle, measured):
    """Each kind many times, between calls that have nothing to do with it."""

    async def one_bad(make: Any) -> BaseException | None:
        try:
            await make()
        except Exception as error:
            return error
        return None

    async def main() -> tuple[list[Any], list[list[BaseException | None]]]:
        kinds = bad_calls(handle)
        bad = [one_bad(make) for _ in range(5) for _, make, _ in kinds]
        good = [handle.echo.remote(i) for i in range(OTHERS)]
        answers, ends = await asyncio.gather(
            asyncio.gather(*good, return_exceptions=True), asyncio.gather(*bad)
        )
        return answers, [ends[i :: len(kinds)] for i in range(len(kinds))]

    before = handle.pid.remote().result(timeout_s=30)
    answers, ends = asyncio.run(main())
    for (what, _, expected), errors in zip(bad_calls(handle), ends, strict=True):
        names = {type(error).__name__ for error in errors}
        measured(17, what, "ended with", expected.__name__, ", ".join(sorted(names)))
        assert all(isinstance(error, expected) for error in errors), (what, errors[0])
    collateral = OTHERS - sum(answer == i for i, answer in enumerate(answers))
    measured(17, f"9 kinds, {OTHERS} other calls", "collateral failures", "0", collateral)
    assert collateral == 0
    assert handle.pid.remote().result(timeout_s=30) == before
