"""serve_grpc's own metrics: their names, and how what was counted reaches Ray.

Nothing here runs for a call or a message. Whoever counts keeps integers that only grow, and a
`Ticker` has what was added told to Ray once a second. docs/metrics.md lists the names as Prometheus
sees them: Ray puts `ray_` before them and `_total` behind those of counters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from serve_grpc.carriers.counters import Counters

__all__ = ["Levels", "Ticker", "Totals", "TrafficMetrics", "caller_tags", "replica_tags"]

REPORT_S = 1.0
"""Well below the shortest interval at which Ray collects metrics from a process."""

DELAY_BOUNDARIES_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]


def caller_tags(deployment: str, application: str, actor_id: str) -> dict[str, str]:
    """Tags on the calling side: the called deployment, and the calling actor ("" for a driver)."""
    return {"deployment": deployment, "application": application, "actor_id": actor_id}


def replica_tags(deployment: str, application: str, replica: str) -> dict[str, str]:
    """Tags on the replica's side, as Serve's own metrics of replicas have them."""
    return {"deployment": deployment, "application": application, "replica": replica}


class Totals:
    """A counter that is told totals and adds what they grew by.

    Args:
        tags: Of every sample.
        key: Name of the tag that tells the totals of this counter apart, "" if there is one.
    """

    def __init__(self, name: str, description: str, tags: Mapping[str, str], key: str = "") -> None:
        keys = (*tags, key) if key else tuple(tags)
        self._key = key
        self._told: dict[str, int] = {}
        self._counter = Counter(name, description=description, tag_keys=keys)
        self._counter.set_default_tags(dict(tags))

    def tell(self, total: int, of: str = "") -> None:
        """Tell Ray what the total grew by since the last time."""
        # Ray's counters can only be increased, so what they were told is remembered here.
        growth = total - self._told.get(of, 0)
        if growth > 0:
            self._told[of] = total
            self._counter.inc(growth, tags={self._key: of} if self._key else None)


class Levels:
    """A gauge with one sample for each key; keys that are gone are set to 0 once."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self._tag_keys = tag_keys
        self._told: set[tuple[str, ...]] = set()
        self._gauge = Gauge(name, description=description, tag_keys=tag_keys)

    def tell(self, levels: Mapping[tuple[str, ...], int]) -> None:
        """The levels of all keys; a key has a value for each tag."""
        # A gauge keeps its last value: a key that is gone would stay on the charts for ever.
        for key in self._told | levels.keys():
            tags = dict(zip(self._tag_keys, key, strict=True))
            self._gauge.set(levels.get(key, 0), tags=tags)
        self._told = set(levels)


class TrafficMetrics:
    """Messages, their bytes and what is in them, in both directions.

    Args:
        prefix: Of the names: one for callers, one for replicas.
    """

    def __init__(self, prefix: str, tags: Mapping[str, str]) -> None:
        def totals(name: str, description: str) -> Totals:
            return Totals(f"{prefix}_{name}", description, tags, key="direction")

        self._messages = totals("messages", "Messages on sessions.")
        self._bytes = totals("message_bytes", "Bytes of messages on sessions.")
        self._frames = totals("message_frames", "Requests and replies in messages on sessions.")
        self._inputs = totals("input_items", "Items of streams that are arguments.")
        self._input_bytes = totals("input_bytes", "Bytes of items of streams that are arguments.")
        self._stored = totals(
            "stored_payloads", "Payloads over the message limit that went by Ray's object store."
        )

    def tell(self, traffic: Counters) -> None:
        """Tell Ray what was added to these counters since the last time."""
        self._messages.tell(traffic.messages_sent, "sent")
        self._messages.tell(traffic.messages_received, "received")
        self._bytes.tell(traffic.bytes_sent, "sent")
        self._bytes.tell(traffic.bytes_received, "received")
        self._frames.tell(traffic.frames_sent, "sent")
        self._frames.tell(traffic.frames_received, "received")
        self._inputs.tell(traffic.inputs_sent, "sent")
        self._inputs.tell(traffic.inputs_received, "received")
        self._input_bytes.tell(traffic.input_bytes_sent, "sent")
        self._input_bytes.tell(traffic.input_bytes_received, "received")
        self._stored.tell(traffic.stored_sent, "sent")
        self._stored.tell(traffic.stored_received, "received")


class Ticker:
    """Calls `report` every second on the running loop, and observes how late the loop was.

    Args:
        component: Whose loop it is: "caller" or "replica".
        actor_id: Of this process, "" for a driver.
        report: Tells the counters. An error of it is logged by the loop and ends nothing.
    """

    def __init__(self, component: str, actor_id: str, report: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._delay = Histogram(
            "serve_grpc_event_loop_delay_seconds",
            description="How late a timer of the event loop that carries the sessions ran.",
            boundaries=DELAY_BOUNDARIES_S,
            tag_keys=("component", "actor_id"),
        )
        self._delay.set_default_tags({"component": component, "actor_id": actor_id})
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, if it is not running."""
        if self._timer is None:
            self._timer = self._loop.call_later(REPORT_S, self._tick)

    def stop(self) -> None:
        """Report a last time and end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._report()

    def _tick(self) -> None:
        assert self._timer is not None
        self._delay.observe(max(0.0, self._loop.time() - self._timer.when()))
        # The next tick first: an error of the report may not be the last that is heard.
        self._timer = self._loop.call_later(REPORT_S, self._tick)
        self._report()
