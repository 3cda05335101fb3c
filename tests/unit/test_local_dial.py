"""How a link over a Unix socket is dialled, and what its reader waits for."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_grpc.carriers.link import LinkLost
from serve_grpc.carriers.local.dial import dial, open_links
from serve_grpc.carriers.local.waiter import Waiter
from serve_grpc.config import Settings
from tests.descriptors import nothing_left_open
from tests.unit.local_links import (
    run,
    turns,
)

# ------------------------------------------------------------ another process


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen(1)
        yield sock


# ------------------------------------------------------------ the dial


def test_a_dial_to_nobody_fails_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(LinkLost, match="No such file"):
            await dial(str(tmp_path / "none"), Settings())
        with pytest.raises(LinkLost, match="too long"):
            await dial(str(tmp_path / ("x" * 200)), Settings())
        (tmp_path / "file").touch()
        with pytest.raises(LinkLost, match="refused"):
            await dial(str(tmp_path / "file"), Settings())
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(tmp_path / "left"))
        left.close()
        with pytest.raises(LinkLost, match="refused"):
            await dial(str(tmp_path / "left"), Settings())

    with nothing_left_open():
        run(main())


def test_a_dial_does_not_wait_for_a_replica_that_lets_nobody_in(listener: socket.socket) -> None:
    async def main() -> None:
        links = [await dial(listener.getsockname(), Settings()) for _ in range(2)]
        with pytest.raises(LinkLost, match="temporarily unavailable"):
            await dial(listener.getsockname(), Settings())
        assert sorted(map(id, open_links())) == sorted(map(id, links))
        for each in links:
            await each.close()
        assert open_links() == []

    run(main())


def test_a_dial_to_another_user_is_refused(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    async def main() -> None:
        with pytest.raises(LinkLost, match=f"is of user {os.getuid()}"):
            await dial(listener.getsockname(), Settings())
        assert open_links() == []

    run(main())


# ------------------------------------------------------------ the waiter


def test_a_waiter_runs_its_task_at_once_or_in_the_next_turn() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        events: list[str] = []

        async def wait(waiter: Waiter) -> None:
            await waiter
            events.append("woken")

        for at_once in (True, False):
            waiter = Waiter(loop)
            waiting = asyncio.ensure_future(wait(waiter))
            await turns(2)

            def wake(waiter: Waiter = waiter, at_once: bool = at_once) -> None:
                waiter.wake(at_once=at_once)
                events.append("after")

            loop.call_soon(wake)
            await waiting
        assert events == ["woken", "after", "after", "woken"]

    run(main())


def test_who_waits_can_be_cancelled() -> None:
    async def main() -> None:
        waiter = Waiter(asyncio.get_running_loop())

        async def wait() -> None:
            await waiter

        waiting = asyncio.ensure_future(wait())
        await turns(2)
        assert waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        waiter.wake(at_once=True)  # too late, and nothing happens
        assert not waiter.cancel()

    run(main())


def test_a_waiter_that_is_awake_already_does_not_wait() -> None:
    async def main() -> None:
        waiter = Waiter(asyncio.get_running_loop())
        waiter.wake(at_once=True)
        await waiter

    run(main())
