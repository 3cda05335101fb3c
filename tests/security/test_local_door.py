"""The replica's Unix socket under attack: who is let in, and what they may say.

The server, the host and the session are real; bare sockets say what they like.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_grpc.carriers.link import SESSION_MESSAGE_BYTES
from serve_grpc.carriers.local.dial import dial, open_links
from serve_grpc.carriers.local.framing import (
    ABORT,
    ACK,
    HEADER,
    MESSAGE,
    header,
    read_abort,
)
from serve_grpc.protocol.caller import HandshakeRefused
from tests.ray.waiting import eventually_async
from tests.security.local_door import Door, Raw, attack
from tests.unit.pump_ends import Caller

WRONG_SECRET = b"the secret of another cluster..."
OF_ANOTHER_USER = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(20)
try:
    peer.connect(sys.argv[1])
    print(peer.recv(100))
except OSError as error:
    print(type(error).__name__)
"""


# ------------------------------------------------------------ who


def test_the_socket_is_for_its_user_only(tmp_path: Path) -> None:
    async def check(door: Door) -> None:
        assert stat.S_IMODE(os.stat(door.path).st_mode) == 0o600

    attack(tmp_path, check)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o600, 0o666], ids=["by the file", "by the kernel's word"])
def test_another_user_is_not_let_in(tmp_path: Path, mode: int) -> None:
    async def check(door: Door) -> None:
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == os.geteuid():
                folder.chmod(0o755) if folder != Path("/") else None
        os.chmod(door.path, mode)
        command = [sys.executable, "-I", "-S", "-c", OF_ANOTHER_USER, door.path]
        said = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
        # With the file's mode gone it connects, and is let go without a word.
        assert said.stdout.decode().strip() == ("PermissionError" if mode == 0o600 else "b''")
        assert not door.server._serving

    attack(tmp_path, check)


def test_a_wrong_proof_is_refused(tmp_path: Path) -> None:
    async def check(door: Door) -> None:
        stranger = Caller(lambda _, settings: dial(door.path, settings), secret=WRONG_SECRET)
        reason = await stranger.end()
        assert isinstance(reason, HandshakeRefused)
        assert "UNAUTHENTICATED" in str(reason)

    attack(tmp_path, check)


# ------------------------------------------------------------ what


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (header(MESSAGE, 0, 0, SESSION_MESSAGE_BYTES + 1), "over the limit"),
        (header(MESSAGE, 0, 0, 2**32 - 1) + bytes(1000), "over the limit"),
        (header(ACK, 0, 1, 0), "acknowledged"),
        (header(ACK, 0, 0, 2**31), "no frame has kind 2"),
        (header(ABORT, 0, 0, 2**31), "no frame has kind 4"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "no frame"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "no frame"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "no frame"),
        (bytes(100_000), "no frame"),
        ((header(MESSAGE, 0, 0, 0)) * 30_000, "more messages came"),
    ],
    ids=[
        "long",
        "longest",
        "ack",
        "ack with length",
        "abort",
        "http",
        "http2",
        "tls",
        "zero",
        "30k",
    ],
)
def test_what_is_no_frame_ends_the_link(tmp_path: Path, said: bytes, reason: str) -> None:
    async def check(door: Door) -> None:
        with Raw(door) as raw:
            with contextlib.suppress(BrokenPipeError):  # it may be ended before all is said
                await raw.send(said)
            told = await raw.is_told()
            assert told.startswith("INVALID: ")
            assert reason in told

    attack(tmp_path, check)


@pytest.mark.parametrize("message", [b"garbage", bytes(70_000), b"\xff" * 1000])
def test_a_message_that_is_none_of_a_session_is_refused(tmp_path: Path, message: bytes) -> None:
    async def check(door: Door) -> None:
        with Raw(door) as raw:
            await raw.send(header(MESSAGE, 0, 0, len(message)) + message)
            heard = await raw.hears()
            assert heard[0] == MESSAGE  # the refusal, then why the link ends
            (length,) = (HEADER.unpack_from(heard)[3],)
            rest = heard[HEADER.size + length :]
            assert rest[0] == ABORT
            assert read_abort(rest[HEADER.size :]).startswith("INVALID: ")

    attack(tmp_path, check)


def test_a_lying_length_takes_no_memory(tmp_path: Path) -> None:
    """So many bytes are announced as may be, by many, and none of them comes."""

    async def check(door: Door) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                raw = stack.enter_context(Raw(door))
                await raw.send(header(MESSAGE, 0, 0, SESSION_MESSAGE_BYTES) + b"x")
            await eventually_async(lambda: door.host.unproven.count == 50)
            await asyncio.sleep(0.05)
            links = list(door.server._serving.values())
            held = [len(link._incoming._decoder._chunk) for link in links]
            assert max(held) == 256 * 1024 + 1
            await door.works()

    attack(tmp_path, check)


def test_a_member_that_lies_later_is_cut_off_and_others_are_not(tmp_path: Path) -> None:
    async def check(door: Door) -> None:
        other = await door.member()
        liar = await door.member()
        link: Any = next(link for link in open_links() if link._outgoing is _outgoing_of(liar))
        link._sock.send(header(MESSAGE, 0, 0, 2**32 - 1))
        assert "INVALID: a message of 4294967295 bytes is over the limit" in str(await liar.end())
        other.ask("call", b"payload")
        await eventually_async(lambda: other.answers == {"call": b"payload"})
        other.pump.cancel()
        await other.pump.wait_closed()

    attack(tmp_path, check)


def _outgoing_of(caller: Caller) -> Any:
    writer = caller.pump._writer
    assert writer is not None
    return writer._write.__self__  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [1, 253])
@pytest.mark.parametrize("pipes", [True, False], ids=["pipe", "socket"])
def test_descriptors_that_nobody_asked_for_are_closed(
    tmp_path: Path, count: int, pipes: bool
) -> None:
    async def check(door: Door) -> None:
        ours, theirs = os.pipe() if pipes else (s.detach() for s in socket.socketpair())
        with Raw(door) as raw:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs] * count))]
            raw.sock.sendmsg([header(MESSAGE, 0, 0, 0)], rights)
            os.close(theirs)
            assert await raw.is_told() == "INVALID: descriptors came that nobody asked for"
            # Nobody has the other end of it any more.
            assert os.read(ours, 1) == b""
        os.close(ours)

    attack(tmp_path, check)
