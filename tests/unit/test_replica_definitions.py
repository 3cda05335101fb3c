"""What a replica loads as its code, and the metadata it publishes beside the user's."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray._private import worker as ray_worker

from serve_grpc._serve.definitions import add_metadata, on_load

loaded: list[Any] = []


def note(code: Any) -> None:
    """A callback that can be pickled by its name."""
    loaded.append(code)


class Echo:
    """The user's class."""


async def ours() -> dict[str, Any]:
    return {"serve_grpc": {"address": "here"}, "both": "ours"}


def test_the_code_itself_is_loaded_and_told_of() -> None:
    before = dict(vars(Echo))
    deployment = serve.deployment(Echo)
    on_load(deployment, note)
    loaded.clear()
    code = pickle.loads(deployment._replica_config.serialized_deployment_def)
    assert code is Echo
    assert loaded == [Echo]
    assert dict(vars(Echo)) == before
    assert deployment.func_or_class is Echo


class UserCode:
    """Serve's wrapper of the user's code, as far as metadata go."""

    def __init__(self, code: Any, users: Any = None) -> None:
        self._deployment_def = code
        self._user_record_replica_metadata = None
        self._users = users
        self.initialized = 0

    async def initialize_callable(self) -> str:
        self.initialized += 1
        self._user_record_replica_metadata = self._users  # found on the user's object
        return "asgi app"

    async def _call_func_or_gen(self, function: Any) -> tuple[Any, bool]:
        result = function()
        return (await result if asyncio.iscoroutine(result) else result), True


def published(monkeypatch: pytest.MonkeyPatch, user_code: UserCode) -> Any:
    """What a replica with this user code publishes, once its constructor ran."""
    other = SimpleNamespace(_replica_impl=SimpleNamespace(_user_callable_wrapper=UserCode(object)))
    replica = SimpleNamespace(_replica_impl=SimpleNamespace(_user_callable_wrapper=user_code))
    actors = {"no replica": SimpleNamespace(), "other": other, "ours": replica}
    monkeypatch.setattr(ray_worker.global_worker, "actors", actors)

    async def main() -> Any:
        add_metadata(Echo, ours)
        await asyncio.sleep(0)  # the code is loaded
        assert await user_code.initialize_callable() == "asgi app"
        assert user_code._user_record_replica_metadata is not None
        return await user_code._user_record_replica_metadata()

    assert "initialize_callable" not in vars(other._replica_impl._user_callable_wrapper)
    return asyncio.run(main())


def test_ours_are_published_where_the_user_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    user_code = UserCode(Echo)
    assert published(monkeypatch, user_code) == asyncio.run(ours())
    assert user_code.initialized == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_ours_stand_beside_the_users(monkeypatch: pytest.MonkeyPatch, is_async: bool) -> None:
    def users() -> dict[str, Any]:
        return {"zone": "a", "both": "theirs"}

    async def users_async() -> dict[str, Any]:
        return users()

    found = published(monkeypatch, UserCode(Echo, users_async if is_async else users))
    assert found == {"zone": "a", "serve_grpc": {"address": "here"}, "both": "ours"}


def test_the_user_without_metadata_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert published(monkeypatch, UserCode(Echo, lambda: None)) == asyncio.run(ours())


def test_what_is_no_metadata_is_left_for_serve_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    assert published(monkeypatch, UserCode(Echo, lambda: ["a list"])) == ["a list"]


def test_where_no_loop_runs_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    user_code = UserCode(Echo)
    replica = SimpleNamespace(_replica_impl=SimpleNamespace(_user_callable_wrapper=user_code))
    monkeypatch.setattr(ray_worker.global_worker, "actors", {"a": replica})
    add_metadata(Echo, ours)
    assert "initialize_callable" not in vars(user_code)
