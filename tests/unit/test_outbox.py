"""The outbox: frames leave in order, large payloads take turns, and the count of bytes is true."""

from __future__ import annotations

import pytest

from serve_grpc._generated.replica_pb2 import ReplicaBatch
from serve_grpc.protocol import wire
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.wire import decode_batch

FRAGMENT = 100
BATCH = 1000


@pytest.fixture(autouse=True)
def _small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAGMENT_BYTES", FRAGMENT)
    monkeypatch.setattr(wire, "BATCH_BYTES", BATCH)


class Sender:
    """Puts frames into an outbox and reads what leaves it, message by message."""

    def __init__(self) -> None:
        self.outbox: Outbox[ReplicaBatch] = Outbox(ReplicaBatch)

    def small(self, call_id: int, payload: bytes = b"") -> None:
        self.outbox.batch.replies.add(id=call_id, payload=payload)
        self.outbox.added(len(payload))

    def large(self, call_id: int, payload: bytes) -> None:
        self.outbox.send_large(call_id, payload, lambda: self.small(call_id))

    def message(self) -> tuple[list[tuple[int, int]], list[int]]:
        """(id, size) of each fragment and id of each reply in the next message."""
        message = self.outbox.take()
        assert message, "it holds something and says nothing"
        batch, fragments = decode_batch(ReplicaBatch, message)
        return [(i, len(data)) for i, data, _ in fragments], [reply.id for reply in batch.replies]

    def messages(self) -> list[tuple[list[tuple[int, int]], list[int]]]:
        out = []
        while self.outbox:
            out.append(self.message())
        return out


@pytest.fixture
def sender() -> Sender:
    return Sender()


def test_an_empty_outbox_has_no_message(sender: Sender) -> None:
    assert not sender.outbox
    assert sender.outbox.take() == b""
    assert (sender.outbox.batches_taken, sender.outbox.queued_bytes) == (0, 0)


def test_frames_added_together_share_a_message_in_order(sender: Sender) -> None:
    for call_id in (3, 1, 2):
        sender.small(call_id)
    assert sender.messages() == [([], [3, 1, 2])]


def test_a_batch_is_closed_at_its_size_and_order_holds_across_messages(sender: Sender) -> None:
    for call_id in range(1, 10):
        sender.small(call_id, b"x" * (BATCH // 2))
    messages = sender.messages()
    assert len(messages) > 3
    assert [call_id for _, replies in messages for call_id in replies] == list(range(1, 10))


def test_a_large_payload_leaves_in_fragments_and_its_owner_with_the_last(sender: Sender) -> None:
    sender.large(1, b"x" * 250)
    assert sender.messages() == [([(1, 100)], []), ([(1, 100)], []), ([(1, 50)], [1])]


def test_a_small_frame_does_not_wait_for_a_large_payload(sender: Sender) -> None:
    sender.large(1, b"x" * 250)
    sender.small(2)
    assert sender.message() == ([(1, 100)], [2])


def test_large_payloads_take_turns(sender: Sender) -> None:
    sender.large(1, b"x" * 250)
    sender.large(2, b"x" * 150)
    turns = [fragments for fragments, _ in sender.messages()]
    assert turns == [[(1, 100)], [(2, 100)], [(1, 100)], [(2, 50), (1, 50)]]


def test_no_message_carries_more_than_one_budget_of_fragments(sender: Sender) -> None:
    for call_id in range(1, 20):
        sender.large(call_id, b"x" * (17 * call_id))
    for fragments, _ in sender.messages():
        assert sum(size for _, size in fragments) <= FRAGMENT


def test_the_next_payload_of_an_id_waits_until_the_first_has_its_owner(sender: Sender) -> None:
    sender.large(1, b"x" * 150)
    sender.large(1, b"y" * 50)
    assert sender.messages() == [([(1, 100)], []), ([(1, 50)], [1]), ([(1, 50)], [1])]


def test_a_large_payload_does_not_pass_frames_that_were_queued_before_it(sender: Sender) -> None:
    for call_id in (8, 9):
        sender.small(call_id, b"x" * BATCH)
    sender.large(1, b"x" * 10)
    sender.large(1, b"y" * 10)
    assert sender.messages() == [([], [8]), ([], [9]), ([(1, 10)], [1]), ([(1, 10)], [1])]


def test_a_small_frame_of_the_same_id_can_wait_its_turn(sender: Sender) -> None:
    sender.large(1, b"x" * 150)
    assert sender.outbox.has_large(1)
    sender.outbox.send_after_large(1, lambda: sender.small(77))
    sender.large(1, b"y" * 10)
    sender.outbox.send_after_large(1, lambda: sender.small(78))
    replies = [call_id for _, ids in sender.messages() for call_id in ids]
    assert replies == [1, 77, 1, 78]
    assert not sender.outbox.has_large(1)


def test_a_dropped_payload_leaves_no_more_fragments_and_no_owner(sender: Sender) -> None:
    sender.large(1, b"x" * 250)
    sender.large(1, b"y" * 250)
    sender.outbox.send_after_large(1, lambda: sender.small(77))
    assert sender.message() == ([(1, 100)], [])
    sender.outbox.drop_large(1)
    sender.outbox.drop_large(5)
    assert not sender.outbox
    assert sender.outbox.queued_bytes == 0


@pytest.mark.parametrize("sizes", [[0], [10, 2000], [1, 99, 100, 101, 1000], [5000] * 3])
def test_queued_bytes_return_to_zero_and_never_go_below(sender: Sender, sizes: list[int]) -> None:
    for call_id, size in enumerate(sizes, 1):
        sender.small(call_id, b"x" * size)
        sender.large(call_id, b"x" * (size + 1))
    assert sender.outbox.queued_bytes >= 2 * sum(sizes)
    while sender.outbox:
        before = sender.outbox.queued_bytes
        assert before > 0
        sender.message()
    assert sender.outbox.queued_bytes == 0


def test_a_frame_is_unsent_exactly_while_fewer_messages_than_its_number_left(
    sender: Sender,
) -> None:
    numbers = {}
    for call_id in range(1, 6):
        numbers[call_id] = sender.outbox.pending_batch
        sender.small(call_id, b"x" * (BATCH // 2))
    while sender.outbox:
        _, replies = sender.message()
        assert [numbers[call_id] for call_id in replies] == [sender.outbox.batches_taken] * len(
            replies
        )
