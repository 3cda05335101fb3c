"""The replica's Unix socket under attack: how long, how many, and what a stop leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from pathlib import Path

import pytest

from serve_grpc.carriers import host as host_module
from serve_grpc.carriers.link import LinkLost
from serve_grpc.carriers.local import serve
from serve_grpc.carriers.local.dial import dial, open_links
from serve_grpc.carriers.local.framing import (
    ASKS,
    MESSAGE,
    header,
)
from serve_grpc.config import Settings
from serve_grpc.entrance import unproven
from tests.ray.waiting import eventually_async
from tests.security.local_door import Door, Raw, attack
from tests.unit.sessions import new_caller

# ------------------------------------------------------------ how long, how many


@pytest.mark.parametrize(
    "first", [b"", b"\1", header(MESSAGE, 0, 0, 1000) + b"x"], ids=["silent", "byte", "half"]
)
def test_a_stranger_who_says_nothing_is_cut_off(
    tmp_path: Path, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unproven, "HANDSHAKE_TIMEOUT_S", 0.5)

    async def check(door: Door) -> None:
        with Raw(door) as raw:
            await raw.send(first)
            assert await raw.is_told() == "LIMIT: no proof of membership came in time"

    attack(tmp_path, check)


def test_a_stranger_who_says_hello_and_no_more_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unproven, "HANDSHAKE_TIMEOUT_S", 0.5)

    async def check(door: Door) -> None:
        with Raw(door) as raw:
            hello = new_caller().outbox.take()
            await raw.send(header(MESSAGE, ASKS, 0, len(hello)) + hello)
            assert b"no proof of membership came in time" in await raw.hears()

    attack(tmp_path, check)


def test_a_member_who_says_nothing_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "MAX_SILENCE_S", 0.5)
    monkeypatch.setattr(host_module, "SILENT_HEARTBEATS", 0)

    async def check(door: Door) -> None:
        member = await door.member()
        assert await member.end() == "LIMIT: nothing was heard for 0.5 s"

    attack(tmp_path, check)


def test_a_flood_of_strangers_does_not_keep_a_member_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unproven, "PATIENCE_S", 0.1)

    async def check(door: Door) -> None:
        most = door.host.unproven.max_reading
        with contextlib.ExitStack() as stack:
            strangers = []
            while len(strangers) < most + 200:
                try:
                    strangers.append(stack.enter_context(Raw(door)))
                except BlockingIOError:  # the line at the door is full
                    await asyncio.sleep(0.001)
            await eventually_async(lambda: door.host.unproven.count > most)
            await asyncio.wait_for(door.works(), 10)

    attack(tmp_path, check)


def test_links_that_wait_count_and_one_more_is_refused(tmp_path: Path) -> None:
    async def check(door: Door) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(Raw(door))
            await eventually_async(lambda: len(door.server._serving) == 3)
            with Raw(door) as raw:
                text = "SERVE_GRPC_MAX_CONNECTIONS=3 links are open"
                assert await raw.is_told() == f"LIMIT: {text}"
            late = await dial(door.path, Settings())
            with pytest.raises(LinkLost, match=text):
                await late.read()
            await late.close()

    attack(tmp_path, check, max_connections=3)


def test_a_process_without_descriptors_lets_in_again_when_it_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve, "PAUSE_S", 0.1)

    async def check(door: Door) -> None:
        with Raw(door) as raw, contextlib.ExitStack() as files:
            # Taken in the same turn, before the replica accepts the one above.
            with contextlib.suppress(OSError):
                while True:
                    files.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            await asyncio.sleep(0.05)
            assert not door.server._serving
            files.close()
            await eventually_async(lambda: len(door.server._serving) == 1)
            assert raw.sock.fileno() >= 0

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        attack(tmp_path, check)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (warning,) = {record.getMessage() for record in caplog.records if "accepts" in record.msg}
    assert "accepts nothing for 0.1 s: [Errno 24]" in warning


# ------------------------------------------------------------ start and stop


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        door = Door(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="in use"):
            Door(door.path)
        await door.works()  # the other one has not taken its file away
        with pytest.raises(OSError, match="too long"):
            Door(str(tmp_path / ("x" * 100)))
        with pytest.raises(OSError, match="No such file"):
            Door(str(tmp_path / "none" / "socket"))
        await door.server.stop()
        await door.server.stop()
        assert os.listdir(tmp_path) == []

    asyncio.run(main())


def test_a_stop_ends_the_links_that_are_open(tmp_path: Path) -> None:
    async def main() -> None:
        door = Door(str(tmp_path / "socket"))
        members = [await door.member() for _ in range(3)]
        silent = await dial(door.path, Settings())
        await eventually_async(lambda: len(door.server._serving) == 4)
        early = await dial(door.path, Settings())  # is not let in any more
        await door.server.stop()
        assert [await member.end() for member in members] == ["the replica closed the session"] * 3
        assert len(door.echo.closed) == 4
        assert await silent.read() is None
        with pytest.raises(LinkLost, match="is gone"):
            await early.read()
        for link in (silent, early):
            await link.close()
        assert not open_links()
        assert not door.host.sessions

    asyncio.run(main())


def test_an_error_of_the_host_is_logged_and_ends_that_link_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(link: object) -> None:
        raise ZeroDivisionError("a bug")

    async def check(door: Door) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(door.host, "serve", fails)
            with Raw(door) as raw:
                assert await raw.is_told() == "LEFT: ZeroDivisionError('a bug')"

    attack(tmp_path, check)
    assert "was not served to its end" in caplog.text
    assert "ZeroDivisionError" in caplog.text
