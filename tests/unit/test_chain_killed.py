"""Three processes in a row: one is killed while the last one reads the memory of the first."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from serve_grpc.shared_memory.segments import is_available
from tests.ray.waiting import eventually
from tests.unit.chain_process import run

pytestmark = pytest.mark.skipif(not is_available(), reason="this platform has no memfd")

SERVER = multiprocessing.get_context("forkserver")
"""It imports once what takes each of them seconds. Not forks of this process: it has threads."""
SERVER.set_forkserver_preload([run.__module__])
SENT = 3


class Process:
    """One of the three. Args: its sockets, which it gets."""

    def __init__(self, sides: tuple[socket.socket | None, ...]) -> None:
        self.commands, theirs = SERVER.Pipe()
        self._process = SERVER.Process(target=run, args=(sides, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, name: str, *args: Any) -> Any:
        """What it answers to a command."""
        self.commands.send((name, *args))
        assert self.commands.poll(20), f"no answer to {name!r}"
        return self.commands.recv()

    def is_lost(self, side: str) -> bool:
        """Whether it has noticed that the other process there is gone."""
        return side in self.ask("state")["lost"]

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()
        self.commands.close()


@pytest.fixture
def chain() -> Iterator[tuple[Process, Process, Process]]:
    """The three, of which the last keeps what the first has sent, and has written to nothing."""
    with contextlib.ExitStack() as stack:
        (a, b), (c, d) = socket.socketpair(), socket.socketpair()
        made: list[Process] = []
        for sides in ((None, a), (b, c), (d, None)):
            made.append(Process(sides))
            stack.callback(made[-1].kill)
        for end in (a, b, c, d):
            end.close()
        maker, middle, reader = made
        for number in range(SENT):
            maker.ask("send", number)
        eventually(lambda: len(reader.ask("kept")) == SENT)
        assert maker.ask("state")["bytes_in_use"] > 0
        assert middle.ask("state")["made"] == 0
        yield maker, middle, reader


WHOLE = [[float(number)] * 2 for number in range(SENT)]


def unused(process: Process) -> dict[str, Any]:
    """What a process has, once nothing of its pool is in use."""

    def settled() -> dict[str, Any] | None:
        state: dict[str, Any] = process.ask("state")
        return state if state["bytes_in_use"] == 0 else None

    return eventually(settled)


def test_the_owner_uses_it_again_when_the_reader_has_let_go(chain: Any) -> None:
    maker, middle, reader = chain
    maker.ask("fill")
    assert reader.ask("kept") == WHOLE
    reader.ask("write")
    reader.ask("let_go")
    assert unused(maker)["bytes_abandoned"] == 0
    made = maker.ask("state")["made"]
    for number in range(SENT):
        maker.ask("send", number)
    eventually(lambda: len(reader.ask("kept")) == SENT)
    assert reader.ask("kept") == WHOLE
    assert maker.ask("state")["made"] == made
    assert middle.ask("state")["made"] == 0


def test_the_first_is_killed(chain: Any) -> None:
    maker, middle, reader = chain
    maker.kill()
    eventually(lambda: middle.is_lost("before"))
    assert reader.ask("kept") == WHOLE
    reader.ask("write")
    assert reader.ask("kept") == [[-1.0, -1.0]] * SENT


def test_the_middle_is_killed(chain: Any) -> None:
    maker, middle, reader = chain
    middle.kill()
    eventually(lambda: maker.is_lost("behind"))
    assert unused(maker)["segments"] == 0  # it does not keep it for ever
    maker.ask("fill")
    assert reader.ask("kept") == WHOLE


def test_the_last_is_killed(chain: Any) -> None:
    maker, middle, reader = chain
    reader.kill()
    assert unused(maker)["segments"] == 0
    assert not maker.is_lost("behind")  # the other sessions go on
    assert middle.is_lost("behind")
