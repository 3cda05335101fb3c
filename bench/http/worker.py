"""Measures the HTTP cases: `python -m bench.http.worker`, started by `workers/runner.py`.

Speaks with its parent as `workers/protocol.py` says. Serve reads its flags when it is imported, so
each combination of proxy and flags gets a process, one after another, that runs Ray and Serve and
sends samples up through this one. A sample that such a process should have sent and did not is sent
here with the reason, so that nothing is missing in silence.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from bench.http.environment import end_haproxy, variables
from bench.http.wrk import MISSING
from bench.plan.http import Proxy
from bench.results.run import Case, Flags, Sample
from bench.workers.groups import ROOT, environment
from bench.workers.protocol import Order, Parent, messages

__all__ = ["groups", "missing"]

START_S = 120.0  # bound of what is not windows: Ray's and Serve's start, the checks, the stop
SLOWEST = 4.0  # and of a window, as a multiple of what it should take
STOP_S = 30.0


def main() -> None:
    """Do what the parent's order says."""
    parent = Parent()
    order = parent.order
    if shutil.which("wrk") is None:
        for case in order.cases:
            for sample in missing(case, order.rounds, set(), MISSING):
                parent.sample(case, sample)
        return
    for cases in groups(order.cases):
        measure(parent, Order(cases, order.rounds, order.window_s))


def groups(cases: tuple[Case, ...]) -> list[tuple[Case, ...]]:
    """The cases that can share a running Serve instance, in their order."""
    found: dict[tuple[Proxy, Flags], list[Case]] = {}
    for case in cases:
        found.setdefault((case.workload["proxy"], case.flags), []).append(case)
    return [tuple(group) for group in found.values()]


def measure(parent: Parent, order: Order) -> None:
    """Run one process for the cases of `order`, all of one group, and pass on what it sends."""
    cases = {case.id: case for case in order.cases}
    sent: dict[str, set[tuple[str, int]]] = {case.id: set() for case in order.cases}
    last_words = "nothing"
    with running(order) as child:
        for message in messages(child, order):
            if isinstance(message, str):
                last_words = message
                parent.log(last_words)
                continue
            case_id, sample = message
            sent[case_id].add((sample.contender, sample.round))
            parent.sample(cases[case_id], sample)
    reason = f"Serve's process ended with status {child.returncode}; it had said: {last_words}"
    for case in order.cases:
        for sample in missing(case, order.rounds, sent[case.id], reason):
            parent.sample(case, sample)


@contextlib.contextmanager
def running(order: Order) -> Iterator[subprocess.Popen[str]]:
    """The process for the cases of `order`. It ends by itself; after its time it is asked to.

    At the end of the block it and all that it started are gone.
    """
    first = order.cases[0]
    windows_s = sum(case.workload["window_s"] * len(case.contenders) for case in order.cases)
    with tempfile.TemporaryDirectory(prefix="http-") as name:
        directory = Path(name)
        flags = variables(first.workload["proxy"], first.flags, directory)
        child = subprocess.Popen(
            [sys.executable, "-m", "bench.http.measure"],
            env=environment(os.environ, flags),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(START_S + SLOWEST * windows_s * (order.rounds + 1), child.terminate)
        timer.daemon = True
        timer.start()
        try:
            yield child
        except BaseException:
            child.terminate()
            raise
        finally:
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            timer.cancel()
            end_haproxy(directory)


def missing(case: Case, rounds: int, sent: set[tuple[str, int]], reason: str) -> Iterator[Sample]:
    """A sample with `reason` for each contender and round that is not in `sent`."""
    for number in range(rounds):
        for contender in case.contenders:
            if (contender, number) not in sent:
                yield Sample(contender, number, error=reason)


if __name__ == "__main__":
    main()
