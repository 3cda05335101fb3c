"""A link over a Unix socket: how it ends, in peace, at once, or with its peer."""

from __future__ import annotations

import array
import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_grpc.carriers.link import Cause, LinkLost
from serve_grpc.carriers.local import link
from serve_grpc.carriers.local.framing import (
    CLOSE,
    HEADER,
    MESSAGE,
    SEGMENT,
    SEGMENT_BODY,
    header,
)
from serve_grpc.carriers.local.link import LocalLink
from serve_grpc.shared_memory.segments import create
from tests.unit.local_links import (
    LARGE,
    PATIENCE_S,
    beside_raw,
    between,
    message,
    read_frames,
    run,
    said,
    turns,
)

# ------------------------------------------------------------ the end


def test_a_forked_child_does_not_keep_a_link_alive() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        try:
            await near.write(b"x")
            assert [kind for kind, _, _ in read_frames(raw, 1)] == [MESSAGE]
            near._sock.close()  # as the kernel does when a process dies
            assert raw.recv(1) == b""
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)  # noqa: ASYNC222 - it is dead

    beside_raw(check)


def test_an_end_without_a_word_is_a_loss() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        raw.sendall(message(b"the last"))
        raw.close()
        assert await near.read() == b"the last"
        for _ in range(2):
            with pytest.raises(LinkLost, match=f"^process {os.getpid()} is gone$"):
                await near.read()
            with pytest.raises(LinkLost, match="is gone"):
                await near.write(b"x")

    beside_raw(check)


@pytest.mark.parametrize("sent", [3, HEADER.size, HEADER.size + 10, 300_000])
def test_an_end_in_the_midst_of_a_message_is_a_loss(sent: int) -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        reading = asyncio.ensure_future(near.read())
        await asyncio.to_thread(raw.sendall, message(bytes(500_000))[:sent])
        raw.close()
        with pytest.raises(LinkLost, match="is gone"):
            await reading

    beside_raw(check)


def test_an_end_in_peace_is_one_also_beside_unread_messages() -> None:
    """The kernel tells of a reset then, but what was sent before it is there to be read."""

    async def check(near: LocalLink, far: LocalLink) -> None:
        await near.write(b"never read")
        await far.write(b"the last")
        await far.close()
        assert await near.read() == b"the last"
        assert await near.read() is None

    between(check)


def test_a_writer_hears_the_reason_that_the_peer_left_behind() -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        await far.abort(Cause.DRAINING, "about to end")
        with pytest.raises(LinkLost, match=r"^DRAINING: about to end$"):
            await near.write(b"x")
        with pytest.raises(LinkLost, match=r"^DRAINING: about to end$"):
            await near.read()

    between(check)


def test_what_came_before_a_reason_is_read_after_a_write_has_heard_it() -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        await far.write(b"a refusal")
        await far.abort(Cause.VERSION, "no")
        with pytest.raises(LinkLost, match=r"^VERSION: no$"):
            await near.write(b"x")
        assert await near.read() == b"a refusal"
        with pytest.raises(LinkLost, match=r"^VERSION: no$"):
            await near.read()

    between(check)


def test_all_that_came_before_a_loss_is_read_after_a_write_has_heard_it() -> None:
    """The kernel stops at a descriptor, so what is in the socket takes several calls to read."""

    async def check(near: LocalLink, raw: socket.socket) -> None:
        body = SEGMENT_BODY.pack(1, 65536)
        frame = header(SEGMENT, 0, 0, len(body)) + body
        segment = create(65536)
        rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (segment.fd,))
        raw.sendmsg((frame,), (rights,))
        raw.sendall(message(b"1") + message(b"2"))
        raw.close()
        segment.close()
        with pytest.raises(LinkLost, match="is gone"):
            await near.write(b"x")
        assert await near.read() == b"1"
        assert await near.read() == b"2"
        with pytest.raises(LinkLost, match="is gone"):
            await near.read()

    beside_raw(check)


def test_a_write_that_waits_hears_of_the_end() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        writing = asyncio.ensure_future(near.write(LARGE))
        await turns()
        raw.close()
        with pytest.raises(LinkLost, match="is gone"):
            await writing

    beside_raw(check)


def test_no_reason_is_sent_into_a_message_that_is_half_written() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        writing = asyncio.ensure_future(near.write(LARGE))
        await turns()
        await near.abort(Cause.LIMIT, "enough")
        with pytest.raises(LinkLost, match="enough"):
            await writing
        arrived = 0
        while more := raw.recv(2**20):
            assert more.strip(b"\0") in (b"", HEADER.pack(MESSAGE, 0, 0, len(LARGE)).strip(b"\0"))
            arrived += len(more)
        assert arrived < len(LARGE)

    beside_raw(check)


def test_a_write_that_is_cancelled_is_still_under_way() -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        writing = asyncio.ensure_future(near.write(LARGE))
        await turns()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert await far.read() == LARGE
        _, arrived = await asyncio.gather(near.write(b"next"), far.read())
        assert arrived == b"next"

    between(check)


def test_a_link_that_is_closed_sends_what_is_under_way_first() -> None:
    async def check(near: LocalLink, far: LocalLink) -> None:
        writing = asyncio.ensure_future(near.write(LARGE))
        await turns()
        closing = asyncio.ensure_future(near.close())
        await turns()
        assert not closing.done()
        with pytest.raises(LinkLost, match="the link is closed"):
            await writing
        assert await far.read() == LARGE
        assert await far.read() is None
        await closing

    between(check)


def test_a_close_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CLOSE_S", 0.1)

    async def check(near: LocalLink, raw: socket.socket) -> None:
        writing = asyncio.ensure_future(near.write(LARGE))
        await turns()
        begin = time.monotonic()
        await near.close()
        assert 0.09 < time.monotonic() - begin < 5
        with pytest.raises(LinkLost, match="the link is closed"):
            await writing

    beside_raw(check)


def test_a_close_ends_when_the_peer_does() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        writing = asyncio.ensure_future(near.write(LARGE))
        await turns()
        closing = asyncio.ensure_future(near.close())
        await turns()
        raw.close()
        begin = time.monotonic()
        await closing
        assert time.monotonic() - begin < link.CLOSE_S / 2
        with pytest.raises(LinkLost):
            await writing

    beside_raw(check)


def test_the_last_word_is_the_end() -> None:
    async def check(near: LocalLink, raw: socket.socket) -> None:
        await near.write(b"1")
        await near.close()
        assert [kind for kind, *_ in said(raw)] == [MESSAGE, CLOSE]

    beside_raw(check)


TALKS = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.sendall(bytes.fromhex(sys.argv[2]))
sys.stdin.read()
"""
"""What the other process does: it sends some bytes, and waits."""


# ------------------------------------------------------------ another process


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen(1)
        yield sock


@pytest.mark.parametrize("more", [b"", message(LARGE)[:50_000]], ids=["idle", "half a message"])
def test_a_peer_that_is_killed_is_gone(listener: socket.socket, more: bytes) -> None:
    # Without the package: it starts at once so.
    data = message(b"alive") + more
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", TALKS, listener.getsockname(), data.hex()],
        stdin=subprocess.PIPE,
    )

    async def main() -> None:
        accepted, _ = await asyncio.to_thread(listener.accept)
        link = LocalLink(accepted, is_accepted=True)
        assert await link.read() == b"alive"
        reading = asyncio.ensure_future(link.read())
        await asyncio.sleep(0.05)
        assert not reading.done()
        process.kill()
        with pytest.raises(LinkLost, match=f"process {process.pid} is gone"):
            await reading
        await link.close()

    listener.settimeout(PATIENCE_S)
    try:
        run(main())
    finally:
        process.kill()
        process.communicate()
