"""What is fuzzed: the decoder of frames and both session machines. Anything but a value or a
documented error leaves these functions as an exception, and is a bug.

Each takes bytes: the first ones choose a way in, the rest is decisions or the message itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve_grpc._generated.replica_pb2 import CallerBatch, ReplicaBatch, Reply
from serve_grpc.payload import is_stored, joined
from serve_grpc.protocol.caller import CallerSession, CallEventKind, HandshakeRefused
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.protocol.handshake import SessionState
from serve_grpc.protocol.replica import ReplicaSession
from serve_grpc.protocol.wire import MAX_UNFINISHED_PAYLOADS, WireError, decode_batch
from tests.fakes.memory import TableMemory
from tests.security.mutations import (
    SEGMENT_BYTES,
    SEGMENTS,
    caller_message,
    damage,
    decisions,
    replica_message,
)
from tests.unit.sessions import STREAM, UNARY, fields, new_caller, new_replica, shake_hands

__all__ = ["TARGETS", "any_target", "check_caller", "check_replica", "feed", "pair"]

LIMIT = 200
CALLS = 4
MOST_MESSAGES = 6


def pair(*, is_open: bool = True) -> tuple[CallerSession[Any], ReplicaSession]:
    """Both machines; open, and with a few calls on their way, or fresh. They share memory, and
    payloads over the limit are taken from a store."""
    limits: dict[str, Any] = {"max_message_bytes": LIMIT, "takes_stored": True}
    caller, replica = new_caller(**limits), new_replica(input_credit=(2, 150), **limits)
    for machine in (caller, replica):
        memory = TableMemory()
        for _ in range(SEGMENTS):
            memory.lend(memoryview(bytearray(SEGMENT_BYTES)))
        machine.share(memory)
    if is_open:
        shake_hands(caller, replica)
        for number in range(CALLS):
            envelope = STREAM if number % 2 else UNARY
            credit = {"credit_items": 3, "credit_bytes": 150} if number % 2 else {}
            inputs = (InputPlace(0, ""),) * number
            caller.request(number, fields(b"x" * 20 * number, envelope, inputs=inputs, **credit))
        replica.receive(caller.outbox.take())
        replica.reply(2, Reply.ITEM, b"y" * 30)
    return caller, replica


def feed(machine: Any, message: bytes) -> Any:
    """What the machine says to a message; None for a documented error."""
    try:
        return machine.receive(message)
    except (WireError, HandshakeRefused):
        return None


def _empty(machine: Any) -> None:
    while machine.outbox:
        assert machine.outbox.take()
    assert machine.outbox.queued_bytes == 0
    assert 0 <= machine._assembler.total_bytes <= LIMIT * (MAX_UNFINISHED_PAYLOADS + 1)
    assert machine._assembler._pieces >= 0


def check_replica(replica: ReplicaSession, heard: Any) -> None:
    """What must hold after any message to a replica."""
    if heard is not None:
        for inbound in heard.requests:
            assert inbound.id in replica.ongoing_ids or inbound.id in heard.cancelled
            if not is_stored(inbound.payload):
                assert len(inbound.payload) <= LIMIT
            replica.reply(inbound.id, Reply.RESULT, joined(inbound.payload))
        for item in heard.inputs:
            assert len(item.payload) <= LIMIT
            replica.grant_input(item.call_id, item.number, 1, len(item.payload))
        for _, items, bytes_ in heard.credits:
            assert items >= 0
            assert bytes_ >= 0
    _empty(replica)


def check_caller(caller: CallerSession[Any], heard: Any, ended: set[Any]) -> None:
    """What must hold after any message to a caller; `ended` are the calls that are over."""
    if heard is not None:
        over = [event.call for event in heard.events if event.kind != CallEventKind.ITEM]
        for call in (*over, *heard.rejected, *heard.undelivered):
            assert call not in ended, "a call ended twice"
            ended.add(call)
    assert not ended & set(caller.calls.values())
    _empty(caller)


# ------------------------------------------------------------ the targets


def decode(data: bytes) -> None:
    """Any bytes as a message of either kind, decoded by hand and by the generated class."""
    kind = ReplicaBatch if data[:1] > b"\x7f" else CallerBatch
    message = data[1:] * (1 + 40_000 // len(data)) if data[:1] and data[0] % 2 else data[1:]
    try:
        batch, fragments = decode_batch(kind, message)
    except WireError:
        return
    assert isinstance(batch, kind)
    assert sum(len(part) for _, part, _ in fragments) <= len(message)


def _messages(data: bytes, make: Callable[..., bytes]) -> list[bytes]:
    if data[:1] and data[0] % 4 == 3:
        return [data[1:]]
    choose = decisions(data)
    choose(256)
    messages = []
    for _ in range(1 + choose(MOST_MESSAGES)):
        message = make(choose, CALLS)
        messages.append(damage(choose, message) if choose(3) == 0 else message)
    return messages


def replica(data: bytes) -> None:
    """Messages to a replica's machine, in any state."""
    _, machine = pair(is_open=not data[:1] or data[0] < 200)
    for message in _messages(data, caller_message):
        heard = feed(machine, message)
        check_replica(machine, heard)
        if machine.state is SessionState.CLOSED or heard is None:
            break
    machine.close()


def caller(data: bytes) -> None:
    """Messages to a caller's machine, in any state."""
    machine, _ = pair(is_open=not data[:1] or data[0] < 200)
    ended: set[Any] = set()
    for message in _messages(data, replica_message):
        heard = feed(machine, message)
        check_caller(machine, heard, ended)
        if machine.state is SessionState.CLOSED or heard is None:
            break
    lost = [call for call, _ in machine.close()]
    assert not set(lost) & ended


TARGETS = (decode, replica, caller)


def any_target(data: bytes) -> None:
    """The first byte chooses the target."""
    TARGETS[data[0] % len(TARGETS) if data else 0](data[1:])
