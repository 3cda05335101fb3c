"""When a loop asks for the cluster's secrets again, and how long anybody waits for the answer."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_grpc.entrance import secrets as secrets_module
from serve_grpc.entrance.secrets import MAX_READS_AT_ONCE, ClusterSecrets
from tests.ray.waiting import eventually_async

OLD, NEW = b"o" * 32, b"n" * 32


class Clock:
    """In the place of `time.monotonic`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_000.0
        monkeypatch.setattr(secrets_module.time, "monotonic", lambda: self.now_s)


class Store:
    """What can be read. `gate` is shut while it cannot be reached."""

    def __init__(self, *secrets: bytes) -> None:
        self.secrets = secrets
        self.error: Exception | None = None
        self.reads = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self) -> tuple[bytes, ...]:
        self.reads += 1
        self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return self.secrets


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    # The loop has the module's clock too, so its own timers stand still, but for `MAX_WAIT_S` = 0.
    return Clock(monkeypatch)


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


def test_what_is_known_is_trusted_for_a_while_and_then_read_again(clock: Clock) -> None:
    async def main() -> None:
        store = Store(NEW, OLD)
        secrets = ClusterSecrets(store, (OLD,))
        await secrets.fresh()
        assert (list(secrets.keyring), store.reads) == ([OLD], 0)
        clock.now_s += secrets_module.FRESH_S + 0.1
        await secrets.fresh()
        await secrets.fresh()
        assert (list(secrets.keyring), store.reads) == ([NEW, OLD], 1)

    run(main)


def test_without_anything_known_the_first_who_asks_waits(clock: Clock) -> None:
    async def main() -> None:
        secrets = ClusterSecrets(Store(NEW))
        assert not secrets.keyring
        await secrets.fresh()
        assert list(secrets.keyring) == [NEW]

    run(main)


def test_many_who_ask_at_once_cause_one_read(clock: Clock) -> None:
    async def main() -> None:
        store = Store(NEW)
        secrets = ClusterSecrets(store, (OLD,))
        told = await asyncio.gather(*(secrets.reread() for _ in range(200)))
        assert (store.reads, all(told), list(secrets.keyring)) == (1, True, [NEW])

    run(main)


def test_unproven_peers_cause_few_reads_and_do_not_wait_for_more(clock: Clock) -> None:
    async def main() -> None:
        store = Store(NEW)
        secrets = ClusterSecrets(store, (OLD,))
        told = [await secrets.reread() for _ in range(1_000)]
        assert store.reads == sum(told) == MAX_READS_AT_ONCE
        clock.now_s += secrets_module.MIN_PAUSE_S
        assert [await secrets.reread() for _ in range(3)] == [True, False, False]
        clock.now_s += 1_000
        assert [await secrets.reread() for _ in range(10)].count(True) == MAX_READS_AT_ONCE

    run(main)


def test_a_store_that_fails_leaves_what_is_known_and_is_asked_again(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = Store(NEW)
        store.error = ConnectionError("no store")
        secrets = ClusterSecrets(store, (OLD,))
        clock.now_s += secrets_module.FRESH_S + 0.1
        await secrets.fresh()
        assert list(secrets.keyring) == [OLD]
        store.error = None
        clock.now_s += secrets_module.FRESH_S + 0.1
        await secrets.fresh()
        assert list(secrets.keyring) == [NEW]

    with caplog.at_level(logging.WARNING):
        run(main)
    (record,) = caplog.records
    assert "no store" in record.getMessage()


def test_a_first_read_that_failed_is_repeated_at_once(clock: Clock) -> None:
    async def main() -> None:
        store = Store(NEW)
        store.error = ConnectionError("not yet")
        secrets = ClusterSecrets(store)
        await secrets.fresh()
        assert not secrets.keyring
        store.error = None
        await secrets.fresh()
        assert list(secrets.keyring) == [NEW]

    run(main)


def test_nobody_waits_long_for_a_store_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secrets_module, "MAX_WAIT_S", 0.05)
    monkeypatch.setattr(secrets_module, "FRESH_S", 0.0)

    async def main() -> None:
        store = Store(NEW)
        store.gate.clear()
        secrets = ClusterSecrets(store, (OLD,))
        for _ in range(3):  # the first one waits, the others find that it is of no use
            await asyncio.wait_for(secrets.fresh(), 5)
        assert (list(secrets.keyring), store.reads) == ([OLD], 1)
        store.gate.set()
        await eventually_async(lambda: list(secrets.keyring) == [NEW])

    run(main)


def test_one_who_gives_up_waiting_does_not_end_the_read_of_the_others(clock: Clock) -> None:
    async def main() -> None:
        store = Store(NEW)
        store.gate.clear()
        secrets = ClusterSecrets(store, (OLD,))
        first, second = (asyncio.create_task(secrets.reread()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        store.gate.set()
        assert await second
        assert list(secrets.keyring) == [NEW]

    run(main)


def test_secrets_are_not_shown() -> None:
    async def main() -> None:
        assert "oooo" not in repr(ClusterSecrets(Store(OLD), (OLD,)))

    run(main)


def test_reading_does_not_wait_for_the_users_threads() -> None:
    async def main() -> None:
        go = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, go.wait)
        try:
            secrets = ClusterSecrets(Store(NEW))
            await asyncio.wait_for(secrets.fresh(), 20)
            assert list(secrets.keyring) == [NEW]
        finally:
            go.set()
            await busy

    run(main)
