"""Row 23: what uploads cost in memory whose handlers do not read."""

from __future__ import annotations

import time

import pytest

from serve_grpc.config import settings
from tests.faults.memory import MIB, watched_memory
from tests.faults.test_uploads_lost import NAMES, ROW
from tests.ray.waiting import eventually

UPLOADS = 100
MIB_EACH = 4
STEADY_S = 1.0
EXTRA_MIB = 1
"""At either end, for each upload, above its window."""


# What is over 64 KB and goes to a replica on this node is in the caller's pool of shared memory,
# which keeps what it has: a second turn would measure nothing.
@pytest.mark.parametrize(
    ("size", "kind"), [(20_000, "loop"), (20_000, "thread"), (200_000, "loop")]
)
def test_uploads_that_nobody_reads_cost_a_window_at_each_end(
    feeder, sink, board, measured, carrier, size, kind
):
    """The peak of all memory that either process has, in shared memory too."""
    number = MIB_EACH * MIB // size
    pids = [handle.trimmed.remote().result(timeout_s=30) for handle in (feeder, sink)]
    window_mib = settings.stream_window_bytes / MIB
    made: list[int] = []

    def is_steady() -> bool:
        made.append(board.count("made"))
        time.sleep(STEADY_S)  # a second look, this much later
        return board.count("start") == UPLOADS and board.count("made") == made[-1] > 0

    with watched_memory(*pids) as growth:
        response = feeder.uploads_held.remote(board.path, UPLOADS, number, size, kind)
        eventually(is_steady, timeout_s=60)
    board.release()
    assert response.result(timeout_s=120) == UPLOADS * number
    fault = f"{UPLOADS} uploads of {size // 1000} KB items that nobody reads; over {NAMES[carrier]}"
    for end, grown_mib in zip(("caller", "replica"), growth.each_mib, strict=True):
        what = f"{end}: memory for each, generators in a {kind}"
        required = f"≤ {window_mib:.0f} + {EXTRA_MIB} MiB"
        measured(ROW, fault, what, required, f"{grown_mib / UPLOADS:.2f} MiB")
    assert max(made) <= UPLOADS * (settings.stream_window_bytes // size + 2)
    assert max(growth.each_mib) / UPLOADS <= window_mib + EXTRA_MIB
