"""How the parent and a worker process talk: JSON lines.

The parent writes one object to the worker's stdin and closes it:

    {"cases": [...], "rounds": 5, "window_s": 0.4}

A case is a `results.Case` as a dict; all are of one set of flags, which the parent has put into the
worker's environment. The worker writes to stdout, one object a line, as things happen:

    {"log": "starting Ray"}                      what it is doing now
    {"case": "serializers/throughput/1", "sample": {...}}   a `results.Sample` as a dict

It sends one sample per case, round and contender, those that failed included, round by round, and
ends with status 0. stderr is for people; the parent keeps it in a file. SIGTERM asks the worker to
end at once: it raises KeyboardInterrupt in the main thread, so that `finally` blocks run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from bench.results.run import Case, Sample

__all__ = ["Order", "Parent", "messages"]


@dataclass(frozen=True)
class Order:
    """What a worker is to measure.

    Attributes:
        cases: All of one set of flags.
        rounds: How often each contender of a case has its turn.
        window_s: Counted time of a window, in seconds.
    """

    cases: tuple[Case, ...]
    rounds: int
    window_s: float

    def rounds_of(self, case: Case) -> int:
        """How many rounds a case gets: what takes minutes wants fewer."""
        return min(self.rounds, int(case.workload.get("rounds", self.rounds)))

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        cases = tuple(Case.from_dict(case) for case in data["cases"])
        return cls(cases, data["rounds"], data["window_s"])


def messages(child: subprocess.Popen[str], order: Order) -> Iterator[str | tuple[str, Sample]]:
    """The parent's end: hand over the order, then give what the worker says until it ends.

    Yields:
        A text of its log, or the id of a case and a sample of it.
    """
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once, as its status will tell
        child.stdin.write(order.to_json())
        child.stdin.close()
    for line in child.stdout:
        message = json.loads(line)
        if "log" in message:
            yield message["log"]
        else:
            yield message["case"], Sample(**message["sample"])


class Parent:
    """The worker's end. Making it takes stdin's order and stdout for itself.

    What libraries print to stdout goes to stderr from then on.
    """

    def __init__(self) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self.order = Order.from_json(sys.stdin.read())
        sys.stdout.flush()
        self._out: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def log(self, text: str) -> None:
        """Say what is being done."""
        self._send({"log": text})

    def sample(self, case: Case, sample: Sample) -> None:
        """Hand in a sample."""
        self._send({"case": case.id, "sample": asdict(sample)})

    def _send(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
