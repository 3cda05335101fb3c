"""All sessions are dialled at once; then the replicas are killed, and come back where they were."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.idle_sessions.processes import Child, child
from bench.idle_sessions.replicas import run_replicas
from bench.reconnect_storm.callers import Story, run_storm_callers

__all__ = ["Storm", "measure_storms"]


@dataclass(frozen=True)
class Storm:
    """One rush.

    Attributes:
        carrier: Of all sessions.
        what: What made them come.
        times_s: When the first call over each was answered, since the replicas began to listen;
            sorted.
        troubles: How often sessions failed from then on, by the reason.
        reads: How often the callers read the cluster's secret.
        replicas_cpu_s: CPU time of the replicas' process until the last answer.
        callers_cpu_s: CPU time of the callers, since they lost their sessions.
    """

    carrier: str
    what: str
    times_s: Sequence[float]
    troubles: Counter[str]
    reads: int
    replicas_cpu_s: float
    callers_cpu_s: float


def measure_storms(
    carrier: str, callers: int, processes: int, aways_s: Sequence[float], *, replicas: int = 1
) -> Iterator[Storm]:
    """One after the other.

    Args:
        carrier: "grpc" or "local".
        callers: How many, in all.
        processes: In how many processes they are.
        aways_s: For how long the replicas are away, each time that they are killed.
        replicas: How many; all in one process, as on a node that is lost.
    """
    files = 2 * callers * replicas
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sg-"))
        theirs = stack.enter_context(child(run_replicas, replicas, folder, files))
        theirs.answer()
        doors = theirs.ask("start")
        ports = [int(address.rpartition(":")[2]) for address, _ in doors]
        ours = [
            stack.enter_context(child(run_storm_callers, doors, callers // processes, carrier))
            for _ in range(processes)
        ]
        for one in ours:
            one.answer()
        before_s = _cpu_s(ours), theirs.usage().cpu_s
        begin_s = time.monotonic()
        for one in ours:
            one.tell("dial")
        yield _storm(carrier, "dialled at once", ours, theirs, begin_s, before_s)
        for away_s in aways_s:
            # There before the other one ends, so that only what is measured takes time.
            after = stack.enter_context(child(run_replicas, replicas, folder, files, ports))
            after.answer()
            before_s = _cpu_s(ours), after.usage().cpu_s
            theirs.kill()
            time.sleep(away_s)
            begin_s = time.monotonic()
            after.ask("start")
            theirs = after
            yield _storm(carrier, f"back after {away_s:g} s", ours, theirs, begin_s, before_s)


def _cpu_s(children: list[Child]) -> float:
    return sum(one.usage().cpu_s for one in children)


def _storm(
    carrier: str,
    what: str,
    ours: list[Child],
    theirs: Child,
    begin_s: float,
    before_s: tuple[float, float],
) -> Storm:
    stories: list[Story] = []
    reads = 0
    for one in ours:
        one.tell("wait")
    for one in ours:
        found, count = one.answer()
        stories += found
        reads += count
    troubles = Counter(
        reason for story in stories for at_s, reason in story.troubles if at_s >= begin_s
    )
    times_s = sorted(story.answered_s - begin_s for story in stories)
    ours_s, theirs_s = before_s
    return Storm(
        carrier,
        what,
        times_s,
        troubles,
        reads,
        theirs.usage().cpu_s - theirs_s,
        _cpu_s(ours) - ours_s,
    )
