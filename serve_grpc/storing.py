"""Payloads over the message limit on their way through Ray's object store, for event loops.

What the sender puts and the receiver fetches is the serialized payload, so no serializer, and none
of what its values are like, depends on the way (docs/decisions/0023-oversize.md).
"""

from __future__ import annotations

import threading
from typing import Any

from serve_grpc._serve import store
from serve_grpc._serve.store import StoreError
from serve_grpc.payload import Payload, Segments, Stored
from serve_grpc.threads import in_waiting_thread

__all__ = ["StoreError", "fetch", "fetch_request", "put", "wait_released"]


async def put(payload: Payload) -> Segments:
    """Put a payload into the store. What is put for who gave up waiting is freed.

    Raises:
        StoreError: As of `store.put`.
    """
    return await in_waiting_thread(store.put, payload)


async def fetch(ref: Any) -> Segments:
    """The payload that an object holds, as views of it.

    Raises:
        StoreError: As of `store.fetch`.
    """
    given_up = threading.Event()
    try:
        return await in_waiting_thread(store.fetch, ref, lambda: not given_up.is_set())
    finally:
        given_up.set()  # the thread is told of a cancel, which ends nothing but this coroutine


async def fetch_request(stored: Stored) -> Segments:
    """The payload of a request, of which its frame says where it is.

    Raises:
        StoreError: As of `store.reference` and `store.fetch`.
    """
    return await fetch(await in_waiting_thread(store.reference, stored))


async def wait_released(timeout_s: float) -> None:
    """Return once all that this process has put was fetched and let go, or after `timeout_s`.

    A process that ends takes with it what it has put.
    """
    if store.has_put():
        await in_waiting_thread(store.wait_released, timeout_s)
