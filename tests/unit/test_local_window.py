"""A link over a Unix socket: its window, and the acknowledgements that open it again."""

from __future__ import annotations

import asyncio
import socket

import pytest

from serve_grpc.carriers.link import LinkLost
from serve_grpc.carriers.local import incoming, outgoing
from serve_grpc.carriers.local.framing import (
    ACK,
    ASKS,
    MESSAGE,
    header,
)
from serve_grpc.carriers.local.link import LocalLink
from serve_grpc.carriers.local.outgoing import WINDOW
from serve_grpc.carriers.pump import Writer
from tests.unit.local_links import (
    LARGE,
    beside_raw,
    between,
    message,
    read_frames,
    said,
    turns,
)

# ------------------------------------------------------------ the window


def test_a_write_waits_once_the_window_is_full() -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        for _ in range(WINDOW - 1):
            await near.write(b"x")
        full = asyncio.ensure_future(near.write(b"y"))
        await turns()
        assert not full.done()
        assert await far.read() == b"x"
        await turns()
        # Only when the last one is taken, which asks for it: an answer may still take it along.
        assert not full.done()
        for _ in range(WINDOW - 1):
            await far.read()
        await asyncio.wait_for(full, 5)

    between(check)


def test_one_message_is_written_at_a_time() -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        for _ in range(WINDOW - 1):
            await near.write(b"x")
        full = asyncio.ensure_future(near.write(b"y"))
        await turns()
        with pytest.raises(RuntimeError, match="another write is under way"):
            await near.write(b"z")
        full.cancel()
        await turns()
        with pytest.raises(RuntimeError, match="another write is under way"):
            await near.write(b"z")

    between(check)


def test_calls_one_after_the_other_cause_no_acknowledgements() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        for number in range(10):
            await near.write(b"ask")
            assert said(raw) == [(MESSAGE, 0, number, b"ask")]
            raw.sendall(message(b"answer", taken=number + 1))
            assert await near.read() == b"answer"
            await turns()
            assert said(raw) == []

    beside_raw(check)


def test_who_asks_is_answered_and_who_does_not_is_not() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        raw.sendall(message(b"1") + message(b"2", ASKS))
        assert await near.read() == b"1"
        await turns()
        assert said(raw) == []
        assert await near.read() == b"2"
        await turns()
        assert said(raw) == [(ACK, 0, 2, b"")]
        raw.sendall(message(b"3"))
        assert await near.read() == b"3"
        await turns()
        assert said(raw) == []

    beside_raw(check)


def test_an_answer_takes_the_acknowledgement_along() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        raw.sendall(message(b"1") + message(b"2", ASKS))
        await near.read()
        await near.read()
        await near.write(b"an answer")
        await turns()
        assert said(raw) == [(MESSAGE, 0, 2, b"an answer")]

    beside_raw(check)


def test_the_message_that_fills_the_window_asks() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        reading = asyncio.ensure_future(near.read())
        for number in range(WINDOW):
            writing = asyncio.ensure_future(near.write(b"%d" % number))
            await turns()
        flags = [flags for _, flags, _, _ in said(raw)]
        assert flags == [0] * (WINDOW - 1) + [ASKS]
        assert not writing.done()
        raw.sendall(header(ACK, 0, 1, 0))
        await writing
        assert not reading.done()
        reading.cancel()

    beside_raw(check)


class Calls:
    """An outbox of bytes."""

    def __init__(self) -> None:
        self.queued = b""

    @property
    def queued_bytes(self) -> int:
        return len(self.queued)

    def take(self) -> bytes:
        message, self.queued = self.queued, b""
        return message


@pytest.mark.parametrize("at_once", [False, True])
def test_what_is_queued_while_the_window_is_full_shares_a_message(at_once: bool) -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        calls = Calls()
        writer = Writer(calls, near.write)
        writing = asyncio.ensure_future(writer.run())
        await turns()
        for number in range(10):
            calls.queued += b"%d" % number
            writer.kick(at_once=at_once)
            await turns()
        alone = [b"%d" % number for number in range(WINDOW)]
        assert [body for *_, body in said(raw)] == alone
        raw.sendall(header(ACK, 0, 1, 0))
        await turns()
        together = b"".join(b"%d" % number for number in range(WINDOW, 10))
        assert said(raw) == [(MESSAGE, ASKS, 0, together)]
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    beside_raw(check)


def test_counts_go_round() -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        for end in (near, far):
            end._outgoing.taken = end._outgoing._told = end._outgoing._heard = 0xFFFF
        for _ in range(3):
            for _ in range(WINDOW):
                writing = asyncio.ensure_future(near.write(b"x"))
                assert await far.read() == b"x"
                await writing
        assert far._outgoing.taken == (0xFFFF + 3 * WINDOW) % 0x10000

    between(check)


def test_an_acknowledgement_waits_behind_a_message_that_is_half_written() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        writing = asyncio.ensure_future(near.write(LARGE))
        await turns()
        raw.sendall(message(b"1") + message(b"2", ASKS))
        assert await near.read() == b"1"
        assert await near.read() == b"2"
        await turns()
        assert not writing.done()
        frames = await asyncio.to_thread(read_frames, raw, 2)
        assert [(kind, taken) for kind, taken, _ in frames] == [(MESSAGE, 0), (ACK, 2)]
        assert frames[0][2] == len(LARGE)
        raw.sendall(header(ACK, 0, 1, 0))
        await writing

    beside_raw(check)


def test_a_message_waits_behind_a_frame_that_is_half_written() -> None:
    """Frames that are no messages fill the kernel's buffer while there is room in the window."""

    async def check(near: LocalLink, raw: socket.socket) -> None:
        sent = 0
        while not near._outgoing.is_half_written:
            near._outgoing.send(ACK)
            sent += 1
        writing = asyncio.ensure_future(near.write(b"behind"))
        await turns()
        assert not writing.done()
        frames = await asyncio.to_thread(read_frames, raw, sent + 1)
        assert [kind for kind, _, _ in frames] == [ACK] * sent + [MESSAGE]
        await writing

    beside_raw(check)


def test_who_acknowledges_nothing_is_cut_off() -> None:
    """A peer of which no message is read could keep the loop busy with such."""

    async def check(near: LocalLink, raw: socket.socket) -> None:
        await near.write(b"x")
        raw.sendall(header(ACK, 0, 1, 0) * 2)
        with pytest.raises(LinkLost, match="an acknowledgement of nothing"):
            await near.read()

    beside_raw(check)


def test_many_messages_of_all_sizes_pass_both_ways_at_once() -> None:
    sizes = [0, 1, 70_000, 2**20, 100, 300_000, 16 * 1024, 16 * 1024 + 1] * 4
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]

    async def check(near: LocalLink, far: LocalLink) -> None:
        async def send(end: LocalLink) -> None:
            for each in messages:
                await end.write(each)

        async def receive(end: LocalLink) -> list[bytes | None]:
            return [await end.read() for _ in messages]

        arrived = await asyncio.gather(receive(near), receive(far), send(near), send(far))
        assert arrived[:2] == [messages, messages]

    between(check)


# ------------------------------------------------------------ the waiter


def test_the_window_is_below_what_a_peer_may_leave_unread() -> None:
    assert 1 <= WINDOW <= incoming.MAX_UNREAD // 2
    assert outgoing.TURNS >= 1
