"""A link whose other process was stopped ends; one whose process only sleeps or hangs goes on."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from serve_grpc.carriers.link import LinkLost
from serve_grpc.carriers.local import link as link_module
from serve_grpc.carriers.local import standstill
from serve_grpc.carriers.local.link import LocalLink
from serve_grpc.carriers.local.standstill import StandstillWatch, is_stopped
from tests.ray.waiting import eventually, eventually_async


@pytest.fixture
def process() -> Iterator[int]:
    """One that waits."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child.pid
        child.kill()


def test_the_kernel_tells_who_is_stopped(process: int) -> None:
    assert not is_stopped(process)
    assert not is_stopped(os.getpid())
    os.kill(process, signal.SIGSTOP)
    eventually(lambda: is_stopped(process))
    os.kill(process, signal.SIGCONT)
    eventually(lambda: not is_stopped(process))
    assert not is_stopped(2**22 + 1)  # nobody


@pytest.mark.parametrize(
    ("stat", "is_it"),
    [
        (b"7 (python) S 1", False),
        (b"7 (python) T 1", True),
        (b"7 (python) t 1", False),
        (b"7 (a T) R (b) S 1", False),
        (b"7 (a) S (b) T 1", True),
        (b"", False),
    ],
)
def test_the_name_of_a_process_is_not_taken_for_its_state(
    monkeypatch: pytest.MonkeyPatch, stat: bytes, is_it: bool
) -> None:
    monkeypatch.setattr(standstill, "open", lambda *_: io.BytesIO(stat), raising=False)
    assert is_stopped(7) is is_it


def watch(monkeypatch: pytest.MonkeyPatch, states: list[bool], process: int = 7) -> list[str]:
    """What a watch says that sees these states, look after look, and then none any more."""
    monkeypatch.setattr(standstill, "LOOK_S", 0.001)
    said: list[str] = []

    async def main() -> None:
        over = asyncio.Event()

        def look(_: int) -> bool:
            if not states:
                over.set()
                return False
            return states.pop(0)

        monkeypatch.setattr(standstill, "is_stopped", look)

        def on_standstill() -> None:
            said.append("stopped")
            over.set()

        watching = StandstillWatch(process, on_standstill)
        try:
            await asyncio.wait_for(over.wait(), 5 if process else 0.05)
        except asyncio.TimeoutError:
            said.append("no look")
        watching.close()
        watching.close()
        before = len(states)
        await asyncio.sleep(0.01)
        assert len(states) == before

    asyncio.run(main())
    return said


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([False] * 5, []),
        ([True, False] * 5, []),
        ([False, True, True, True], ["stopped"]),
    ],
)
def test_two_looks_in_a_row_count(
    monkeypatch: pytest.MonkeyPatch, states: list[bool], said: list[str]
) -> None:
    assert watch(monkeypatch, states) == said


def test_a_process_that_the_kernel_does_not_show_is_not_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert watch(monkeypatch, [True, True], process=0) == ["no look"]


def test_a_process_is_looked_at_once_for_all_links_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standstill, "LOOK_S", 0.001)
    said: list[int] = []

    async def main() -> None:
        looks: list[int] = []
        over = asyncio.Event()

        def look(process: int) -> bool:
            looks.append(process)
            if len(looks) == 6:
                over.set()
            return process == 7

        monkeypatch.setattr(standstill, "is_stopped", look)
        watches = [StandstillWatch(7, lambda n=n: said.append(n)) for n in range(3)]  # type: ignore[misc]
        watches.append(StandstillWatch(8, lambda: said.append(8)))
        watches[1].close()
        await asyncio.wait_for(over.wait(), 5)
        # Twice both, and then the one whose links have not ended.
        assert sorted(looks[:4]) == [7, 7, 8, 8]
        assert looks[4:] == [8, 8]
        watches[-1].close()
        await asyncio.sleep(0.01)
        assert len(looks) == 6

    asyncio.run(main())
    assert sorted(said) == [0, 2]


def test_a_link_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch, process: int) -> None:
    monkeypatch.setattr(standstill, "LOOK_S", 0.02)
    monkeypatch.setattr(link_module, "_credentials", lambda _: (process, os.geteuid(), 0))

    async def main() -> None:
        near, far = (LocalLink(end, is_accepted=False) for end in socket.socketpair(socket.AF_UNIX))
        reading = asyncio.ensure_future(near.read())
        await asyncio.sleep(0.1)
        assert not reading.done()
        os.kill(process, signal.SIGSTOP)
        await eventually_async(reading.done)
        with pytest.raises(LinkLost, match=f"process {process} was stopped"):
            reading.result()
        await near.close()
        await far.close()

    asyncio.run(main())
