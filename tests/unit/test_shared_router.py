"""When a handle shares the router of Serve's own handle, and that only one is started."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serve_grpc._serve import handles
from serve_grpc._serve.handles import shared_router


class ServesHandle:
    """Starts a router at its first use, which takes a while."""

    def __init__(self, threads: int = 1) -> None:
        self.router: object | None = None
        self.starting = 0
        self.most_at_once = 0
        self.begin = threading.Barrier(threads)

    def _init_router(self) -> object:
        self.starting += 1
        self.most_at_once = max(self.most_at_once, self.starting)
        if self.router is None:
            self.router = object()
        self.starting -= 1
        return self.router


def test_with_a_loop_of_its_own_everybody_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "RUN_ROUTER_IN_SEPARATE_LOOP", True)
    handle = ServesHandle(threads=8)

    def share(_: int) -> Any:
        handle.begin.wait(20)
        return shared_router(handle)

    with ThreadPoolExecutor(8) as threads:
        routers = set(threads.map(share, range(8)))
    assert routers == {handle.router}
    assert handle.router is not None
    assert handle.most_at_once == 1


@pytest.mark.parametrize("is_replica", [False, True])
@pytest.mark.parametrize("has_loop", [False, True])
def test_on_the_callers_loop_only_a_replica_may(
    monkeypatch: pytest.MonkeyPatch, is_replica: bool, has_loop: bool
) -> None:
    monkeypatch.setattr(handles, "RUN_ROUTER_IN_SEPARATE_LOOP", False)
    context = object() if is_replica else None
    monkeypatch.setattr(handles.serve_context, "_get_internal_replica_context", lambda: context)
    handle = ServesHandle()

    async def on_loop() -> Any:
        return shared_router(handle)

    found = asyncio.run(on_loop()) if has_loop else shared_router(handle)
    if is_replica and has_loop:
        assert found is handle.router is not None
    else:
        assert found is handle.router is None
