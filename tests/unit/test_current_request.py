"""The request that is handled here: what its calls inherit, and how a cancel reaches them."""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections import defaultdict
from typing import Any

import pytest
from ray.serve import context as serve_context

from serve_grpc._serve import requests


class Child:
    """A call that is cancelled; a call may end because of that, and take itself out."""

    def __init__(self, parent: str = "", number: int = 0) -> None:
        self.is_cancelled = False
        self._of = parent, number

    def cancel(self) -> None:
        self.is_cancelled = True
        if self._of[0]:
            requests.remove_child(*self._of)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve's registries, empty."""
    registry: Any = defaultdict(dict)
    monkeypatch.setattr(serve_context, "_in_flight_requests", registry)
    monkeypatch.setattr(serve_context, "_requests_pending_assignment", defaultdict(dict))
    return registry


def test_outside_of_a_request_there_is_nothing_to_inherit() -> None:
    def outside() -> tuple[Any, ...]:
        serve_context._serve_request_context.set(None)
        return requests.current_request()

    assert contextvars.Context().run(outside) == ("", "", "", "", "", None)


def test_a_request_is_what_its_calls_inherit() -> None:
    fields = vars(
        serve_context._RequestContext(
            route="/echo",
            request_id="request",
            _internal_request_id="internal",
            app_name="app",
            grpc_context=None,
            _client="peer",
        )
    )

    def inside() -> tuple[Any, ...]:
        requests.enter_request(dict(fields))
        context = serve_context._serve_request_context.get()
        assert isinstance(context, serve_context._RequestContext)
        assert vars(context) == fields
        return requests.current_request()

    found = contextvars.Context().run(inside)
    assert found == ("request", "internal", "/echo", "app", "peer", None)


def test_a_cancelled_request_cancels_its_calls_and_no_other(registry: Any) -> None:
    children = [Child("a", number) for number in range(3)]
    other = Child("b", 3)
    for number, child in enumerate(children):
        requests.add_child("a", number, child)
    requests.add_child("b", 3, other)
    requests.cancel_children("a")
    assert all(child.is_cancelled for child in children)
    assert not other.is_cancelled
    assert list(registry) == ["b"]


def test_serve_may_walk_over_them_while_they_end(registry: Any) -> None:
    for number in range(3):
        requests.add_child("a", number, Child("a", number))
    for child in registry["a"].values():  # as Serve does it
        child.cancel()
    assert "a" not in registry


def test_a_call_that_is_over_is_forgotten(registry: Any) -> None:
    requests.add_child("a", 1, Child())
    requests.remove_child("a", 2)
    assert list(registry["a"]) == [1]
    requests.remove_child("a", 1)
    requests.remove_child("a", 1)
    assert not registry
    requests.cancel_children("a")


def test_calls_that_serve_has_not_assigned_yet_are_cancelled_on_their_loop() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(asyncio.Event().wait())
        serve_context._requests_pending_assignment["a"] = {"call": task}
        requests.cancel_children("a")
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)

    asyncio.run(main())


def test_a_request_id_is_a_random_uuid_as_serves() -> None:
    ids = [requests.generate_request_id() for _ in range(200)]
    for request_id in ids:
        parsed = uuid.UUID(request_id)
        assert (str(parsed), parsed.version, parsed.variant) == (request_id, 4, uuid.RFC_4122)
    assert len(set(ids)) == len(ids)
    assert {request_id[19] for request_id in ids} == set("89ab")
