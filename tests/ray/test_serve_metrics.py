"""Metrics of our own, and what `serve_grpc.handle_statistics(handle)` says."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import re

import pytest

import serve_grpc
from serve_grpc.errors import DeadlineExceededError
from tests.environments import ROOT
from tests.ray.apps.gated import Board
from tests.ray.apps.metered import MAX_ONGOING_REQUESTS, metered_app
from tests.ray.apps.plain import Plain
from tests.ray.compat.behaviours import OURS
from tests.ray.prometheus import exposed_names, scrape
from tests.ray.waiting import eventually

PATIENCE_S = 60
CALLS, ITEMS = 20, 5
NOT_HERE = {
    "ray_serve_grpc_local_fallbacks_total",
    "ray_serve_grpc_replica_stored_payloads_total",
    "ray_serve_grpc_retries_total",
    "ray_serve_grpc_stored_payloads_total",
}


@pytest.fixture(scope="module")
def metered(deploy):
    """Called by the first test alone, before the others."""
    return deploy(metered_app(OURS, "Own"), "own")


def test_what_was_called_is_in_our_metrics(metered):
    assert serve_grpc.handle_statistics(metered).transport == "undecided"
    for response in [metered.echo.remote(number) for number in range(CALLS)]:
        response.result(timeout_s=PATIENCE_S)
    assert len(list(metered.options(method_name="items", stream=True).remote(ITEMS))) == ITEMS
    with pytest.raises(ValueError, match="a bad value"):
        metered.fail.remote().result(timeout_s=PATIENCE_S)
    assert metered.total.remote(n for n in range(ITEMS)).result(timeout_s=PATIENCE_S) == 10
    frames = {"sent": CALLS + 3, "received": CALLS + ITEMS + 3}

    def told() -> bool:
        now = scrape()
        ours = [
            now.total("serve_grpc_calls", deployment="Own", outcome=outcome)
            for outcome in ("ok", "user_exception")
        ]
        replicas = [
            now.total("serve_grpc_replica_requests", deployment="Own", outcome=outcome)
            for outcome in ("ok", "error")
        ]
        carried = [
            now.total(f"serve_grpc_{side}message_frames", deployment="Own", direction=direction)
            for side in ("", "replica_")
            for direction in ("sent", "received")
        ]
        sent, received = frames.values()
        inputs = [
            now.total("serve_grpc_input_items", deployment="Own", direction="sent"),
            now.total("serve_grpc_replica_input_items", deployment="Own", direction="received"),
        ]
        return (
            ours == replicas == [CALLS + 2, 1]
            and carried == [sent, received, received, sent]
            and inputs == [ITEMS, ITEMS]
        )

    eventually(told, timeout_s=PATIENCE_S)
    now = scrape()
    is_open = {"deployment": "Own", "carrier": "local"}
    assert now.total("serve_grpc_sessions", state="ready", **is_open) == 1
    assert now.total("serve_grpc_replica_sessions", **is_open) == 1
    for name in ("serve_grpc_sessions", "serve_grpc_replica_sessions"):
        assert now.total(name, deployment="Own", carrier="grpc") == 0
    for direction, number in frames.items():
        labels = {"deployment": "Own", "direction": direction}
        assert 0 < now.total("serve_grpc_messages", **labels) <= number + 10  # the handshake's
        assert now.total("serve_grpc_message_bytes", **labels) > 10 * number
        assert now.total("serve_grpc_replica_message_bytes", **labels) > 10 * number
    for component in ("caller", "replica"):
        name = "serve_grpc_event_loop_delay_seconds_count"
        assert now.total(name, component=component) > 0


def test_statistics_are_of_the_handle_and_its_copies(metered):
    now = serve_grpc.handle_statistics(metered.options(timeout_s=5))
    assert (now.deployment_name, now.app_name) == ("Own", "own")
    assert (now.transport, now.fallback_reason) == ("serve_grpc", None)
    assert now.calls["user_exception"] == 1
    assert now.calls["ok"] == CALLS + 2
    assert now.requests_sent == CALLS + 3
    assert now.replies_received == CALLS + 3 + ITEMS
    assert now.messages_sent > 0
    assert now.messages_received > 0
    assert now.bytes_sent > now.requests_sent * 10
    assert pickle.loads(pickle.dumps(now)) == now
    with pytest.raises(dataclasses.FrozenInstanceError):
        now.waiting = 1
    serves = metered.options(_by_reference=True)
    assert serve_grpc.handle_statistics(serves).transport == "serve_grpc"  # of what was counted


def test_statistics_show_a_full_replica(metered, tmp_path):
    board = Board(tmp_path)
    held = [metered.remote(board.path) for _ in range(MAX_ONGOING_REQUESTS)]
    eventually(lambda: board.count("start") == MAX_ONGOING_REQUESTS)
    waiting = metered.echo.remote(1)
    late = metered.options(timeout_s=0.2).echo.remote(2)
    with pytest.raises(DeadlineExceededError):
        late.result(timeout_s=PATIENCE_S)

    async def in_a_loop():
        return serve_grpc.handle_statistics(metered)

    for now in (serve_grpc.handle_statistics(metered), asyncio.run(in_a_loop())):
        assert (now.in_flight, now.waiting) == (MAX_ONGOING_REQUESTS, 1)
        assert now.calls["deadline_exceeded"] == 1
        (replica,) = now.replicas
        assert (replica.state, replica.is_blocked) == ("ready", False)
        assert replica.in_flight == replica.reported_load == MAX_ONGOING_REQUESTS
        assert replica.max_ongoing_requests == MAX_ONGOING_REQUESTS
        assert replica.address.rpartition(":")[2].isdigit()
        assert replica.carrier == "local"
    board.release()
    for response in [*held, waiting]:
        response.result(timeout_s=PATIENCE_S)
    now = serve_grpc.handle_statistics(metered)
    assert (now.in_flight, now.waiting, now.rejections) == (0, 0, 0)


def test_a_call_that_is_turned_away_is_counted_as_rejected(metered, tmp_path):
    board = Board(tmp_path)
    serves = metered.options(_by_reference=True)  # takes slots that our caller does not know of
    held = [serves.remote(board.path) for _ in range(MAX_ONGOING_REQUESTS)]
    eventually(lambda: board.count("start") == MAX_ONGOING_REQUESTS)
    before = serve_grpc.handle_statistics(metered).rejections
    waiting = metered.echo.remote(1)
    eventually(lambda: serve_grpc.handle_statistics(metered).rejections > before)
    assert serve_grpc.handle_statistics(metered).waiting <= 1
    board.release()
    for response in [*held, waiting]:
        response.result(timeout_s=PATIENCE_S)
    rejections = serve_grpc.handle_statistics(metered).rejections
    for name in ("serve_grpc_rejections", "serve_grpc_replica_rejections"):
        eventually(
            lambda name=name: scrape().total(name, deployment="Own") == rejections,
            timeout_s=PATIENCE_S,
        )


def test_the_names_in_the_documentation_are_those_that_prometheus_sees(metered):
    """After the calls of the tests above. No session is lost here, so no call is repeated; the
    local lane is there, so no session does without it; and no payload is over the limit."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    named = set(re.findall(r"`(ray_\w+)`", page)) - {*NOT_HERE, "ray_"}
    assert "ray_serve_num_router_requests_total" in named
    seen: set[str] = set()

    async def reserve() -> None:
        async with metered.choose_replica():
            pass

    def all_were_seen() -> bool:
        # Ray forgets a gauge that nobody sets for a while: calls set some, slots another.
        assert metered.echo.remote(1).result(timeout_s=PATIENCE_S) == 1
        asyncio.run(reserve())
        seen.update(exposed_names())
        return named <= seen

    try:
        eventually(all_were_seen, timeout_s=PATIENCE_S)
    except AssertionError as error:
        raise AssertionError(f"not exposed: {sorted(named - seen)}") from error


def test_statistics_say_why_a_handle_falls_back(deploy):
    from ray import serve

    plain = serve.deployment(ray_actor_options={"num_cpus": 0.01})(Plain)
    handle = deploy(plain.bind(), "own-plain")
    for _ in range(3):
        assert handle.options(timeout_s=20).remote(1).result(timeout_s=PATIENCE_S) == 1
    now = serve_grpc.handle_statistics(handle)
    assert (now.transport, now.fallback_reason) == ("Serve's gRPC", "has no serve_grpc endpoint")
    assert (now.calls, now.replicas) == ({}, ())


def test_a_response_of_statistics_travels(deploy):
    """A replica may give its handles' statistics to whoever asks."""

    class Asked:
        def __init__(self, inner):
            self.inner = inner.options(_by_reference=False)

        async def __call__(self):
            await self.inner.remote(1)
            return serve_grpc.handle_statistics(self.inner)

    options = {"ray_actor_options": {"num_cpus": 0.01}, "graceful_shutdown_wait_loop_s": 0.1}
    inner = serve_grpc.deployment(**options)(Plain).bind()
    handle = deploy(serve_grpc.deployment(**options)(Asked).bind(inner), "own-asked")
    said = handle.remote().result(timeout_s=PATIENCE_S)
    assert isinstance(said, serve_grpc.HandleStatistics)
    assert (said.deployment_name, said.calls) == ("Plain", {"ok": 1})


def test_statistics_of_a_handle_by_reference_tell_how_its_copies_calls_travelled(deploy):
    serves = deploy(metered_app(OURS, "Told"), "told").options(_by_reference=True)
    assert serve_grpc.handle_statistics(serves).transport == "by reference"
    by_value = serves.options(_by_reference=False)
    assert by_value.echo.remote(1).result(timeout_s=PATIENCE_S) == 1
    statistics = serve_grpc.handle_statistics(serves)
    assert (statistics.transport, statistics.calls) == ("serve_grpc", {"ok": 1})
    assert repr(serves).endswith("transport='by reference')")
    assert repr(by_value).endswith("transport='serve_grpc')")
