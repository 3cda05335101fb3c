"""A call that was repeated: whatever ends it later, its error says that it may have run."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from serve_grpc.caller import pool as pool_module
from serve_grpc.caller.pool import pool_of
from serve_grpc.errors import DeadlineExceededError, MessageTooLargeError, ServeGrpcError
from tests.unit.transport_loop import TransportLoop


@pytest.mark.parametrize(
    "error", [DeadlineExceededError("x"), MessageTooLargeError(2, 1, "request")]
)
@pytest.mark.parametrize("may_have_run", [False, True])
def test_an_error_after_a_repeat_is_truthful(
    transport: TransportLoop, error: ServeGrpcError, may_have_run: bool
) -> None:
    error.may_have_executed = False
    call = transport.new_call()
    call.may_have_executed = may_have_run
    transport.run(call.fail, error)
    assert error.may_have_executed is may_have_run


def test_pools_of_closed_loops_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "cluster_secrets", lambda: [b""])

    async def use() -> weakref.ref[object]:
        pool = pool_of()
        assert pool is pool_of()
        return weakref.ref(pool)

    pools = [asyncio.run(use()) for _ in range(5)]
    gc.collect()
    assert [pool() is not None for pool in pools] == [False] * 4 + [True]
