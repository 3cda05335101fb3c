"""A link over a Unix socket: what it holds, and what a peer that breaks the rules is told."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import tracemalloc

import pytest

from serve_grpc.carriers.link import SESSION_MESSAGE_BYTES, LinkLost
from serve_grpc.carriers.local import incoming
from serve_grpc.carriers.local.framing import (
    ABORT,
    ACK,
    HEADER,
    MESSAGE,
    header,
    read_abort,
)
from serve_grpc.carriers.local.link import LocalLink
from tests.unit.local_links import (
    LARGE,
    beside_raw,
    between,
    message,
    said,
    turns,
)

# ------------------------------------------------------------ what it holds


def test_nothing_is_read_before_somebody_reads() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        raw.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                raw.send(message(bytes(1000)))
        await asyncio.sleep(0.05)
        with pytest.raises(BlockingIOError):
            raw.send(b"x")

    beside_raw(check)


def test_a_stranger_has_one_message_unread() -> None:
    """Until it has proved itself, which takes two."""

    async def check(near: LocalLink, far: LocalLink) -> None:
        raw = near._sock
        raw.sendall(message(b"hello"))
        assert await far.read() == b"hello"
        raw.sendall(message(b"proof"))
        await asyncio.sleep(0.01)
        raw.sendall(message(b"unread"))
        await asyncio.sleep(0.01)
        assert list(far._incoming._arrived) == [b"proof"]
        assert await far.read() == b"proof"
        assert await far.read() == b"unread"

    between(check)


def test_a_stranger_who_is_refused_has_no_more_unread() -> None:
    """Nothing is read after a refusal, but the refusal may wait to be heard."""

    async def check(near: LocalLink, far: LocalLink) -> None:
        raw = near._sock
        for each in (b"hello", b"no proof"):
            raw.sendall(message(each))
            assert await far.read() == each
        await far.write(b"challenge")
        refusing = asyncio.ensure_future(far.write(b"refused"))
        for _ in range(5):
            await asyncio.sleep(0.01)
            raw.sendall(message(bytes(10_000)))
        assert len(far._incoming._arrived) == 1
        refusing.cancel()

    between(check)


def test_who_sends_more_than_may_be_on_their_way_is_cut_off() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        raw.sendall(message(b"x") * (incoming.MAX_UNREAD + 1))
        assert await near.read() == b"x"
        for _ in range(incoming.MAX_UNREAD):
            assert await near.read() == b"x"
        with pytest.raises(LinkLost, match="more messages came than may be on their way"):
            await near.read()
        ((kind, _, _, body),) = said(raw)
        assert (kind, read_abort(body)[:8]) == (ABORT, "INVALID:")

    beside_raw(check)


def test_a_peer_that_reads_nothing_costs_no_memory() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        tracemalloc.start()
        writing = asyncio.ensure_future(near.write(LARGE))
        await turns()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 100_000  # the message itself is the writer's
        assert not writing.done()
        writing.cancel()

    beside_raw(check)


def test_a_message_that_comes_byte_by_byte_costs_no_more_than_its_bytes() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        reading = asyncio.ensure_future(near.read())
        raw.sendall(header(MESSAGE, 0, 0, len(LARGE)))
        await turns()
        tracemalloc.start()
        for _ in range(1000):
            raw.send(b"x")
            await asyncio.sleep(0)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 300_000
        reading.cancel()

    beside_raw(check)


# ------------------------------------------------------------ the end


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (header(ACK, 0, 1, 0), "1 messages are acknowledged, of 0"),
        (header(MESSAGE, 0, 0, SESSION_MESSAGE_BYTES + 1), "over the limit"),
        (b"\0" * HEADER.size, "kind 0"),
    ],
)
def test_a_peer_that_breaks_the_rules_is_told(lie: bytes, reason: str) -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        raw.sendall(message(b"before") + lie + message(b"after"))
        assert await near.read() == b"before"
        with pytest.raises(LinkLost, match=reason):
            await near.read()
        ((kind, _, _, body),) = said(raw)
        assert kind == ABORT
        assert read_abort(body).startswith("INVALID: ")
        assert reason in read_abort(body)

    beside_raw(check)


@pytest.mark.parametrize("count", [1, 3, 253])
def test_descriptors_that_nobody_asked_for_are_closed(count: int) -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        reader, writer = os.pipe()
        rights = array.array("i", [reader] * count)
        raw.sendmsg([message(b"x")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        before = len(os.listdir("/proc/self/fd"))
        assert await near.read() == b"x"
        with pytest.raises(LinkLost, match="descriptors came that nobody asked for"):
            await near.read()
        assert len(os.listdir("/proc/self/fd")) == before - 1  # the link's own socket
        ((kind, _, _, body),) = said(raw)
        assert (kind, read_abort(body)[:8]) == (ABORT, "INVALID:")
        os.close(reader)
        os.close(writer)

    beside_raw(check)
