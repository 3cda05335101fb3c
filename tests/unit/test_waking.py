"""What wakes calls that wait: pauses that grow, and a look whether Serve is still there."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from serve_grpc.caller import waking
from serve_grpc.caller.waking import BackoffTimer, ServeWatch
from serve_grpc.routing.retry import Backoff
from tests.ray.waiting import eventually_async


def adapter(**fields: Any) -> Any:
    backoff = Backoff(initial_s=0.01, multiplier=2, max_s=0.04)
    return SimpleNamespace(loop=asyncio.get_running_loop(), backoff=backoff, **fields)


def test_each_pause_is_longer_until_an_answer_comes() -> None:
    async def main() -> None:
        over: list[float] = []
        timer = BackoffTimer(adapter(), lambda: over.append(asyncio.get_running_loop().time()))
        pauses = []
        for _ in range(3):
            begun_s, count = asyncio.get_running_loop().time(), len(over)
            timer.begin()
            timer.begin()  # there is one already
            await eventually_async(lambda count=count: len(over) > count)
            pauses.append(over[-1] - begun_s)
        assert len(over) == timer.times == 3
        assert pauses[0] >= 0.009
        assert pauses[2] >= 0.039
        timer.times = 0
        timer.begin()
        assert "begun, 0 before" in repr(timer)
        timer.close()
        assert "over" in repr(timer)
        await asyncio.sleep(0.03)  # longer than the pause that was closed
        assert len(over) == 3

    asyncio.run(main())


@pytest.mark.parametrize(("has_ready", "is_serve_gone"), [(True, True), (False, False)])
def test_serve_is_watched_while_calls_wait(
    monkeypatch: pytest.MonkeyPatch, has_ready: bool, is_serve_gone: bool
) -> None:
    monkeypatch.setattr(waking, "LOOK_S", 0.01)

    async def main() -> None:
        looks: list[bool] = []
        gone: list[bool] = []
        serve = adapter(is_serve_gone=is_serve_gone)
        state = SimpleNamespace(ready=has_ready, waiting=True)

        def is_needed() -> bool:
            looks.append(state.waiting)
            return state.waiting

        watch = ServeWatch(
            serve,
            is_needed=is_needed,
            has_ready=lambda: state.ready,
            on_gone=lambda: gone.append(True),
        )
        watch.begin()
        watch.begin()
        await eventually_async(lambda: len(looks) >= 3)
        assert gone == []
        state.ready, serve.is_serve_gone = False, True
        await eventually_async(lambda: gone)
        assert "idle" in repr(watch)
        state.waiting = False
        watch.begin()
        assert "idle" in repr(watch)
        assert gone == [True]

    asyncio.run(main())
