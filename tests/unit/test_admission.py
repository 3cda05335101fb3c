"""Who is let in, with a router that only notes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from serve_grpc.caller import admission as admission_module
from serve_grpc.caller.admission import Admission
from serve_grpc.caller.call import Call
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.feed import Feed
from serve_grpc.caller.outcomes import Outcome, Raised
from serve_grpc.config import LOGGER_NAME
from tests.behaviour.serving import Chooser, new_call
from tests.fakes.deliveries import delivery_of
from tests.ray.waiting import eventually_async

LIMIT = 2


class Adapter:
    """Serve's limit. `queued` are the calls that wait."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_unavailable = False
        self.queued = 0

    def refusal(self, *, is_full: bool, room_to_come: Callable[[], int]) -> Exception | None:
        if is_full and self.queued - room_to_come() >= LIMIT:
            return BackPressureError(num_queued_requests=self.queued, max_queued_requests=LIMIT)
        return None


class Inside(Chooser):
    """A router all of whose replicas are full; every call waits."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self._adapter = adapter
        self.feed = Feed()
        self.opening = 0
        self.routed: list[Call] = []
        self.left_to_serve: list[Call] = []
        self.refused = 0

    def leave_to_serve(self, delivery: Delivery) -> None:
        self.left_to_serve.append(delivery.call)

    def pick_for_new(self, delivery: Delivery) -> None:
        """There is no room."""

    def refusal(self, delivery: Delivery, *, is_full: bool) -> Outcome | None:
        error = self._adapter.refusal(is_full=is_full, room_to_come=lambda: self.opening)
        return None if error is None else Raised(error)

    def count(self, delivery: Delivery, *, is_refused: bool = False) -> None:
        self.refused += is_refused

    def route(self, delivery: Delivery, connection: Any) -> None:
        self.routed.append(delivery.call)
        self._adapter.queued += 1

    def watch_serve(self) -> None:
        """Serve stays."""


class Tally:
    """Numbers."""

    def __init__(self) -> None:
        self.waiting = 0
        self.resolutions_ms: list[float] = []


class Scene:
    """An admission and what is around it."""

    def __init__(self) -> None:
        self.adapter: Any = Adapter()
        self.inside = Inside(self.adapter)
        self.tally: Any = Tally()
        self.admission = Admission(self.adapter, self.tally, self.inside)

    def enter(self, count: int, arguments: Any = None) -> list[Call]:
        """Some calls, one after the other."""
        calls = [new_call(self.inside) for _ in range(count)]
        for call in calls:
            self.admission.enter(delivery_of(call), arguments)
        return calls


def refused(calls: list[Call]) -> list[bool]:
    return [isinstance(call.exception(), BackPressureError) for call in calls]


def test_calls_before_the_configuration_are_judged_in_order_when_it_comes() -> None:
    async def main() -> None:
        scene = Scene()
        calls = scene.enter(5)
        assert (scene.tally.waiting, scene.inside.routed) == (5, [])
        scene.admission.on_configured(has_replicas=True)
        assert scene.inside.routed == calls[:LIMIT]
        assert refused(calls) == [False] * LIMIT + [True] * 3
        assert (scene.tally.waiting, scene.inside.refused) == (0, 3)

    asyncio.run(main())


def test_sessions_that_are_being_opened_count_as_room() -> None:
    async def main() -> None:
        scene = Scene()
        scene.inside.opening = 3
        scene.admission.on_configured(has_replicas=True)
        assert refused(scene.enter(7)) == [False] * (LIMIT + 3) + [True] * 2

    asyncio.run(main())


def test_without_replicas_the_limit_holds_a_moment_after_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission_module, "NEWS_APART_S", 0.01)

    async def main() -> None:
        scene = Scene()
        calls = scene.enter(4)
        scene.admission.on_configured(has_replicas=False)
        assert scene.inside.routed == []
        await eventually_async(lambda: scene.inside.routed)
        assert refused(calls) == [False] * LIMIT + [True] * 2

    asyncio.run(main())


def test_where_serves_own_router_places_calls_it_judges_them() -> None:
    async def main() -> None:
        scene = Scene()
        calls = scene.enter(2)
        scene.inside.feed = Feed(is_serve_routed=True)
        scene.admission.on_configured(has_replicas=False)
        assert scene.inside.left_to_serve == calls
        calls += scene.enter(3)
        assert scene.inside.left_to_serve == calls

    asyncio.run(main())


def test_a_call_that_was_given_up_is_not_let_in() -> None:
    async def main() -> None:
        scene = Scene()
        first, second = scene.enter(2)
        delivery = delivery_of(first)
        delivery.cancel()
        delivery.cancel()
        assert scene.tally.waiting == 1
        scene.admission.on_configured(has_replicas=True)
        assert scene.inside.routed == [second]

    asyncio.run(main())


def test_calls_whose_arguments_are_on_their_way_are_judged_once_and_before() -> None:
    async def main() -> None:
        scene = Scene()
        scene.admission.on_configured(has_replicas=True)
        there = asyncio.Event()
        started = 0

        async def arguments() -> None:
            nonlocal started
            started += 1
            await there.wait()

        let_in = scene.enter(3, arguments)  # they do not wait for a replica yet
        scene.enter(LIMIT)
        late = scene.enter(2, arguments)
        assert refused(let_in + late) == [False] * 3 + [True] * 2
        there.set()
        await eventually_async(lambda: len(scene.inside.routed) == 3 + LIMIT)
        assert started == 3
        assert refused(let_in) == [False] * 3
        assert len(scene.tally.resolutions_ms) == 3

    asyncio.run(main())


@pytest.mark.parametrize("error", [ValueError("upstream failed"), asyncio.CancelledError()])
def test_an_argument_that_fails_ends_its_call(error: BaseException) -> None:
    async def main() -> None:
        scene = Scene()
        scene.admission.on_configured(has_replicas=True)

        async def arguments() -> None:
            raise error

        (call,) = scene.enter(1, arguments)
        await call.wait_done()
        is_cancel = isinstance(error, asyncio.CancelledError)
        assert isinstance(call.exception(), RequestCancelledError if is_cancel else ValueError)
        assert scene.inside.routed == []

    asyncio.run(main())


def test_debug_lines_tell_what_a_call_waits_for_before_it_is_let_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER_NAME)

    async def main() -> None:
        scene = Scene()
        there = asyncio.Event()

        async def arguments() -> None:
            await there.wait()

        scene.enter(1, arguments)
        assert caplog.messages == ["request an id: waits for the configuration"]
        caplog.clear()
        scene.admission.on_configured(has_replicas=True)
        assert caplog.messages == ["request an id: waits for its arguments"]
        caplog.clear()
        there.set()
        await eventually_async(lambda: scene.inside.routed)
        scene.enter(1)  # it waits for nothing here
        assert caplog.messages == []

    asyncio.run(main())
