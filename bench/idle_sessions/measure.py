"""One line of the table: a number of sessions, opened, called over once, and left alone."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass

from bench.idle_sessions.callers import run_callers
from bench.idle_sessions.processes import Child, Usage, child
from bench.idle_sessions.replicas import run_replicas

__all__ = ["Row", "measure_idle"]

SETTLE_S = 6.0
"""Before the window, for what opening left behind; longer than heartbeats are apart at first."""


@dataclass(frozen=True)
class Row:
    """What one side of the sessions costs.

    Attributes:
        carrier: Of all sessions.
        side: Whose figures these are, and what it has sessions with.
        sessions: How many.
        private_kib, rss_kib: Memory per session, beside what the first one took.
        cpu: Share of a core that the process uses while all are idle.
        open_cpu_ms: CPU time of opening one, and of a call over it.
    """

    carrier: str
    side: str
    sessions: int
    private_kib: float
    rss_kib: float
    cpu: float
    open_cpu_ms: float


def measure_idle(carrier: str, sessions: int, idle_s: float, *, callers: int) -> list[Row]:
    """The caller's row and the replica's.

    Args:
        carrier: "grpc" or "local".
        sessions: How many.
        idle_s: Length of the window in which nothing is called.
        callers: 1 for a caller of so many replicas, which are in one process too; else a replica
            has so many callers.
    """
    replicas = sessions // callers
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sg-"))
        theirs = stack.enter_context(child(run_replicas, replicas, folder, 2 * sessions))
        theirs.answer()
        doors = theirs.ask("start")
        ours = stack.enter_context(child(run_callers, doors, callers, carrier))
        ours.answer()
        before = _settled(ours, theirs)
        ours.ask("open")
        opened = [ours.usage(), theirs.usage()]
        time.sleep(SETTLE_S)
        after = _settled(ours, theirs)
        time.sleep(idle_s)  # the window that is measured
        idle = [ours.usage(), theirs.usage()]
        ours.ask("close")
        sides = _names(callers, replicas)
        return [
            _row(carrier, side, sessions, idle_s, *usages)
            for side, *usages in zip(sides, before, opened, after, idle, strict=True)
        ]


def _settled(ours: Child, theirs: Child) -> list[Usage]:
    ours.ask("collect")
    return [ours.usage(), theirs.usage()]


def _names(callers: int, replicas: int) -> tuple[str, str]:
    if callers == 1:
        return f"a caller of {replicas} replicas", f"{replicas} replicas, a caller each"
    return f"{callers} callers of a replica", f"a replica of {callers} callers"


def _row(
    carrier: str,
    side: str,
    sessions: int,
    idle_s: float,
    before: Usage,
    opened: Usage,
    after: Usage,
    idle: Usage,
) -> Row:
    count = sessions - 1
    return Row(
        carrier,
        side,
        sessions,
        (after.private_kib - before.private_kib) / count,
        (after.rss_kib - before.rss_kib) / count,
        (idle.cpu_s - after.cpu_s) / idle_s,
        (opened.cpu_s - before.cpu_s) / count * 1e3,
    )
