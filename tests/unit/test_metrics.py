"""What was counted reaches Ray's metrics: growth, levels, and how late the loop was."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_grpc import metrics
from serve_grpc.carriers.counters import Counters
from tests.fakes.serve_objects import Metric

TAGS = {"deployment": "Echo", "application": "app"}


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Metric]:
    """Ray's metrics that were made, by name."""
    made: dict[str, Metric] = {}

    def make(name: str, **options: Any) -> Metric:
        made[name] = Metric(name, **options)
        return made[name]

    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, kind, make)
    return made


def test_a_total_is_told_as_what_it_grew_by(made: dict[str, Metric]) -> None:
    totals = metrics.Totals("calls", "Calls.", TAGS, key="outcome")
    for total, outcome in [(3, "ok"), (3, "ok"), (5, "ok"), (1, "failed"), (0, "lost")]:
        totals.tell(total, outcome)
    assert made["calls"].tag_keys == ("deployment", "application", "outcome")
    assert made["calls"].default_tags == TAGS
    assert made["calls"].told == [
        (3, {"outcome": "ok"}),
        (2, {"outcome": "ok"}),
        (1, {"outcome": "failed"}),
    ]


def test_a_total_without_a_key_has_no_tag_of_its_own(made: dict[str, Metric]) -> None:
    totals = metrics.Totals("retries", "Retries.", TAGS)
    totals.tell(2)
    assert made["retries"].tag_keys == tuple(TAGS)
    assert made["retries"].told == [(2, None)]


def test_a_level_that_is_gone_is_set_to_zero_once(made: dict[str, Metric]) -> None:
    levels = metrics.Levels("sessions", "Sessions.", ("state", "replica"))
    levels.tell({("ready", "a"): 1, ("ready", "b"): 2})
    made["sessions"].told.clear()
    levels.tell({("ready", "b"): 3})
    gone = (0, {"state": "ready", "replica": "a"})
    assert sorted(made["sessions"].told, key=lambda told: told[0]) == [
        gone,
        (3, {"state": "ready", "replica": "b"}),
    ]
    made["sessions"].told.clear()
    levels.tell({})
    levels.tell({})
    assert made["sessions"].told == [(0, {"state": "ready", "replica": "b"})]


def test_a_key_has_a_value_for_each_tag() -> None:
    with pytest.raises(ValueError, match="zip"):
        metrics.Levels("x", "X.", ("state", "replica")).tell({("ready",): 1})


def test_tags_are_named_alike_on_each_side() -> None:
    assert metrics.caller_tags("d", "a", "") == {
        "deployment": "d",
        "application": "a",
        "actor_id": "",
    }
    assert metrics.replica_tags("d", "a", "r") == {
        "deployment": "d",
        "application": "a",
        "replica": "r",
    }


def test_messages_are_told_in_both_directions(made: dict[str, Metric]) -> None:
    counters = Counters()
    counters.messages_sent, counters.bytes_sent, counters.frames_sent = 1, 20, 3
    counters.stored_sent, counters.stored_received = 7, 8
    counters.inputs_sent, counters.input_bytes_sent = 9, 10
    counters.inputs_received, counters.input_bytes_received = 11, 12
    counters.messages_received, counters.bytes_received, counters.frames_received = 4, 50, 6
    metrics.TrafficMetrics("caller", TAGS).tell(counters)
    sent, received = {"direction": "sent"}, {"direction": "received"}
    assert {name: metric.told for name, metric in made.items()} == {
        "caller_messages": [(1, sent), (4, received)],
        "caller_message_bytes": [(20, sent), (50, received)],
        "caller_message_frames": [(3, sent), (6, received)],
        "caller_stored_payloads": [(7, sent), (8, received)],
        "caller_input_items": [(9, sent), (11, received)],
        "caller_input_bytes": [(10, sent), (12, received)],
    }


def test_a_ticker_reports_until_it_stops_and_once_more(
    made: dict[str, Metric], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "REPORT_S", 0.001)

    async def main() -> None:
        thrice = asyncio.Event()
        reports = 0

        def report() -> None:
            nonlocal reports
            reports += 1
            if reports == 3:
                thrice.set()

        ticker = metrics.Ticker("caller", "actor", report)
        ticker.start()
        ticker.start()  # it runs already
        await asyncio.wait_for(thrice.wait(), 20)
        at_the_end = reports
        ticker.stop()
        assert reports == at_the_end + 1
        ticker.stop()
        assert reports == at_the_end + 1

    asyncio.run(main())
    (delay,) = made.values()
    assert delay.default_tags == {"component": "caller", "actor_id": "actor"}
    assert len(delay.values) >= 3
    assert min(delay.values) >= 0


def test_a_report_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REPORT_S", 0.001)

    async def main() -> None:
        said: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: said.append(context["exception"])
        )
        twice = asyncio.Event()

        def report() -> None:
            if len(said) == 2:
                twice.set()
                return
            raise ValueError("a bad report")

        ticker = metrics.Ticker("replica", "", report)
        ticker.start()
        await asyncio.wait_for(twice.wait(), 20)
        ticker.stop()
        assert [str(error) for error in said] == ["a bad report"] * 2

    asyncio.run(main())
