"""Messages of real sessions, and what may be done to them: the material of floods and fuzzers.

`apply` reads a few bytes as decisions, so a fuzzer that changes bytes finds its way; `random`
decisions give the mass.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Credit,
    Drain,
    Error,
    Fragment,
    ReplicaBatch,
    Reply,
    Request,
    StoredPayload,
)

__all__ = ["SEGMENTS", "SEGMENT_BYTES", "caller_message", "damage", "replica_message"]

EXTREMES = (0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1)
WIDE = (*EXTREMES, 2**63, 2**64 - 1)
SEGMENTS = 4
"""Those of shared memory that there are, numbered from 1, each of `SEGMENT_BYTES`."""
SEGMENT_BYTES = 64
Choose = Callable[[int], int]
"""A number below the argument."""


def _id(choose: Choose, ids: int) -> int:
    """One near the calls that there are, or an extreme."""
    return WIDE[choose(len(WIDE))] if choose(8) == 0 else choose(ids + 4)


def _fragment(choose: Choose, ids: int) -> Fragment:
    """With bytes or with a place in shared memory; now and then both, or a wrong place."""
    fragment, kind = Fragment(id=_id(choose, ids)), choose(8)
    if kind < 4:
        fragment.data = b"f" * choose(70)
    if kind > 2:
        fragment.segment = 1 + choose(SEGMENTS)
        fragment.offset = choose(SEGMENT_BYTES)
        fragment.size = 1 + choose(SEGMENT_BYTES - fragment.offset)
    if kind == 7:
        wrong = ("segment", "offset", "size")[choose(3)]
        setattr(fragment, wrong, EXTREMES[choose(len(EXTREMES))])
    return fragment


def _stored(choose: Choose) -> StoredPayload:
    object_id, owner = b"o" * choose(30), b"a" * choose(30)
    return StoredPayload(size=WIDE[choose(len(WIDE))], object_id=object_id, owner_address=owner)


def caller_message(choose: Choose, ids: int) -> bytes:
    """A well-formed message of a caller: its own, duplicate and foreign ids, any order and size."""
    batch = CallerBatch()
    for _ in range(choose(6)):
        kind = choose(8)
        if kind == 0:
            batch.templates.add(number=choose(5), method="m" * choose(20), stream=bool(choose(2)))
        elif kind in (1, 2):
            batch.fragments.append(_fragment(choose, ids))
        elif kind in (3, 4):
            request = Request(
                id=_id(choose, ids),
                template=choose(5),
                payload=b"p" * (choose(80) // 2 * choose(2)),
                credit_items=EXTREMES[choose(len(EXTREMES))],
                timeout_ms=EXTREMES[choose(len(EXTREMES))],
            )
            if not request.payload:
                request.stored.CopyFrom(_stored(choose))
            batch.requests.append(request)
        elif kind == 5:
            big = EXTREMES[choose(len(EXTREMES))]
            batch.credits.append(Credit(id=_id(choose, ids), items=big, bytes=big))
        elif kind == 6:
            batch.cancels.append(_id(choose, ids))
        else:
            batch.ping = EXTREMES[choose(len(EXTREMES))]
    return batch.SerializeToString()


def replica_message(choose: Choose, ids: int) -> bytes:
    """The same of a replica."""
    batch = ReplicaBatch()
    for _ in range(choose(6)):
        kind = choose(9)
        if kind in (0, 1):
            batch.fragments.append(_fragment(choose, ids))
        elif kind in (2, 3, 4):
            reply = Reply(id=_id(choose, ids), kind=choose(5), payload=b"p" * choose(40))
            if choose(3) == 0:
                reply.error.CopyFrom(Error(code=choose(12), message="e" * choose(30)))
            if choose(4) == 0:
                reply.stored.CopyFrom(_stored(choose))
            if choose(3) == 0:
                reply.lent = WIDE[choose(len(WIDE))]
            batch.replies.append(reply)
        elif kind == 5:
            batch.rejected.append(_id(choose, ids))
        elif kind == 6:
            batch.requests_read = WIDE[choose(len(WIDE))]
        elif kind == 7:
            batch.ongoing, batch.pong = choose(300), choose(3)
        elif choose(20) == 0:
            batch.drain.CopyFrom(Drain(requests_read=WIDE[choose(len(WIDE))]))
    return batch.SerializeToString()


def damage(choose: Choose, message: bytes) -> bytes:
    """The message with bytes cut, changed, doubled or put in; lengths become huge or negative."""
    data = bytearray(message)
    for _ in range(1 + choose(3)):
        place = choose(len(data) + 1)
        kind = choose(6)
        if kind == 0:
            del data[place:]
        elif kind == 1 and place < len(data):
            data[place] = choose(256)
        elif kind == 2:
            data[place:place] = bytes(choose(256) for _ in range(1 + choose(4)))
        elif kind == 3:
            data[place:place] = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # -1 as a length
        elif kind == 4:
            data[place:place] = data[: choose(len(data) + 1)]
        else:
            del data[place : place + 1 + choose(4)]
    return bytes(data)


def chance(rng: random.Random) -> Choose:
    """Random decisions."""
    return lambda below: int(rng.random() * below)


def decisions(data: bytes) -> Choose:
    """Decisions that a fuzzer makes: each takes a byte; all are 0 when they run out."""
    position = 0

    def choose(below: int) -> int:
        nonlocal position
        position += 1
        return data[position - 1] % below if position <= len(data) else 0

    return choose
