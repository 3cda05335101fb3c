"""The connection pools of event loops."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from serve_grpc.caller import pool as pool_module
from serve_grpc.caller.pool import pool_of


def test_pools_of_closed_loops_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "cluster_secrets", lambda: [b""])

    async def use() -> weakref.ref[object]:
        pool = pool_of()
        assert pool is pool_of()
        return weakref.ref(pool)

    pools = [asyncio.run(use()) for _ in range(5)]
    gc.collect()
    assert [pool() is not None for pool in pools] == [False] * 4 + [True]
