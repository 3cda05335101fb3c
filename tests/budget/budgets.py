"""The budgets: what one call may cost in the pure parts, in bytecode instructions.

`python -m tests.budget.measure` prints what each costs now. To change one on purpose, measure on
CPython 3.10, 3.11 and 3.13 and allow the worst plus 15 %. The numbers are per call, in a batch of
32 where calls travel in batches.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import serve_grpc
from tests.budget.instructions import count_instructions, without_gc
from tests.budget.whole_way import (
    CALLER_SIDE,
    CALLS,
    ITEMS,
    REPLICA_SIDE,
    calls_made,
    items_relayed,
    items_sent,
    items_streamed,
)
from tests.budget.workloads import (
    BATCH,
    PICKS,
    caller_receives,
    caller_requests,
    mailbox_hands_over,
    pick_among,
    reference_loop,
    replica_receives,
    replica_replies,
    request_serialized,
    response_serialized,
    round_trip,
)

__all__ = ["BUDGETS", "HOW_TO_MEASURE", "MAX_RATIO", "Budget", "measure_ratio"]

PACKAGE = Path(serve_grpc.__file__).parent
HOW_TO_MEASURE = "python -m tests.budget.measure"


@dataclass(frozen=True)
class Budget:
    """What one part of a call may cost.

    Attributes:
        name: What is done.
        allowed: Instructions per call.
        calls: How many calls one run of the workload does.
        prepare: Makes what is needed and returns the function whose instructions count.
        within: Only code of these files and folders of the package counts; all code if empty.
    """

    name: str
    allowed: int
    calls: int
    prepare: Callable[[], Callable[[], object]]
    within: tuple[str, ...] = ()

    def measure(self) -> float:
        """Instructions per call now."""
        return sum(self.counts().values()) / self.calls

    def counts(self) -> Counter[CodeType]:
        """Instructions of all calls, by the code that executed them."""
        counts = count_instructions(self.prepare)
        if not self.within:
            return counts
        paths = tuple(f"{PACKAGE}/{path}" for path in self.within)
        return Counter({c: n for c, n in counts.items() if c.co_filename.startswith(paths)})


BUDGETS = (
    Budget("caller session: request queued and sent", 264, BATCH, caller_requests),
    Budget("replica session: request received", 128, BATCH, replica_receives),
    Budget("replica session: reply queued and sent", 130, BATCH, replica_replies),
    Budget("caller session: reply received", 174, BATCH, caller_receives),
    Budget("pick among 1 replica", 74, PICKS, functools.partial(pick_among, 1)),
    Budget("pick among 10 replicas", 301, PICKS, functools.partial(pick_among, 10)),
    Budget("pick among 1000 replicas", 301, PICKS, functools.partial(pick_among, 1000)),
    Budget("mailbox: function posted and run", 51, BATCH, mailbox_hands_over),
    Budget("arguments to bytes and back", 207, BATCH, request_serialized),
    Budget("result to bytes and back", 149, BATCH, response_serialized),
    # Of these only CPython 3.11 was measured.
    Budget("whole call: the caller's side", 1068, CALLS, calls_made, CALLER_SIDE),
    Budget("whole call: the replica's side", 684, CALLS, calls_made, REPLICA_SIDE),
    Budget("item of a stream: the caller's side", 203, ITEMS, items_streamed, CALLER_SIDE),
    Budget("item of an argument: the caller's side", 371, ITEMS, items_sent, CALLER_SIDE),
    Budget("item of an argument: the replica's side", 213, ITEMS, items_sent, REPLICA_SIDE),
    Budget("item that is passed on: the caller's side", 452, ITEMS, items_relayed, CALLER_SIDE),
)

MAX_RATIO = 3.5
"""Time of a batch through both session machines over that of the reference loop: 1.5 × measured.

It sees what costs time in C, which no count of instructions does.
"""
RATIO_ROUNDS = 40
RUNS_PER_ROUND = 5


def measure_ratio() -> float:
    """The ratio now: the shortest of several rounds of each, measured in turns."""
    batch, reference = round_trip(), reference_loop()
    times: dict[Callable[[], object], list[float]] = {batch: [], reference: []}

    def measure() -> None:
        for _ in range(RATIO_ROUNDS):
            for run, seconds in times.items():
                begin = time.thread_time()
                for _ in range(RUNS_PER_ROUND):
                    run()
                seconds.append(time.thread_time() - begin)

    without_gc(measure)
    return min(times[batch]) / min(times[reference])
