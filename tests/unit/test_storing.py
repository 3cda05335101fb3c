"""Ray's object store as calls use it: what is no payload, who waits, what is told of errors."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from serve_grpc._serve import store
from serve_grpc.payload import Stored
from serve_grpc.storing import StoreError
from serve_grpc.threads import THREAD_NAME, in_waiting_thread

# ------------------------------------------------------------ the store


@pytest.mark.parametrize("address", [b"", b"\xff\xff", b"\x0a\x03abc\x12\x01x\x18\x01\x22\x03abc"])
def test_an_address_that_is_none_never_reaches_ray(address: bytes) -> None:
    with pytest.raises(StoreError, match="the address of its owner"):
        store.reference(Stored(1, b"x" * 28, address))


def test_without_a_cluster_nothing_is_put() -> None:
    with pytest.raises(StoreError, match="Ray was shut down"):
        store.put(b"x")


@pytest.mark.parametrize(
    ("metadata", "text", "owner_died"),
    [
        (b"9", "OWNER_DIED", True),
        (b"8", "OBJECT_LOST", False),
        (b"RAW", "no payload", False),
        (b"99999", "no payload", False),
        (None, "no payload", False),
    ],
)
def test_what_is_no_payload_is_told_apart(
    metadata: bytes | None, text: str, owner_died: bool
) -> None:
    error = store._no_payload(metadata)
    assert text in str(error)
    assert error.owner_died is owner_died


# ------------------------------------------------------------ threads that wait


def test_what_waits_for_others_holds_up_nothing_that_works() -> None:
    release = threading.Event()

    async def main() -> list[Any]:
        waiting = [in_waiting_thread(release.wait, 30) for _ in range(20)]
        name = await in_waiting_thread(lambda: threading.current_thread().name)
        assert name.startswith(THREAD_NAME)
        release.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [True] * 20


def test_its_errors_arrive_and_who_gives_up_is_not_waited_for() -> None:
    release = threading.Event()

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await in_waiting_thread(lambda: 1 // 0)
        late = asyncio.ensure_future(in_waiting_thread(release.wait, 30))
        await asyncio.sleep(0)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        release.set()

    asyncio.run(main())
