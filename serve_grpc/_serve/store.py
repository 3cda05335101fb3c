"""Payloads in Ray's object store: putting them there, finding and reading them.

The pieces of a payload become buffers out of band (pickle protocol 5) of one object, so Ray copies
each of them once, and what is read are views of shared memory. Invariant: nothing that a peer says
is unpickled here. A reference travels as an id and its owner's address, and of an object that is
read only the buffers are looked at. Every function here may block: none is for an event loop.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from google.protobuf.message import DecodeError
from ray._private.worker import global_worker
from ray._raylet import split_buffer, unpack_pickle5_buffers
from ray.core.generated.common_pb2 import Address, ErrorType
from ray.exceptions import GetTimeoutError

from serve_grpc.payload import Payload, Segments, Stored, pieces, refs_of

__all__ = ["StoreError", "fetch", "has_put", "put", "reference", "wait_released"]

LOOK_UP_MS = 500
"""Between two looks whether what is fetched is still wanted: Ray's own waiting has no cancel."""
LOOK_AGAIN_S = 0.02
"""Between two looks whether what was put is still held."""
_OF_PYTHON = b"PYTHON"
"""Ray's mark on objects that it has written with buffers out of band."""
_ID_BYTES = 28
"""Of a node's id and a worker's, which are the two in an address."""
_OWNER_DIED = ErrorType.Value("OWNER_DIED")


class StoreError(Exception):
    """An object could not be put, or cannot be had.

    Attributes:
        owner_died: Whether that is because the process is gone that has put it.
    """

    def __init__(self, text: str, *, owner_died: bool = False) -> None:
        super().__init__(text)
        self.owner_died = owner_died


def put(payload: Payload) -> Segments:
    """Put a payload into the store; the object lives as long as the refs of what is returned.

    Raises:
        StoreError: The store is full, or this process is no longer connected to a Ray cluster.
    """
    try:
        _check_connected()
        # As buffers, or Ray would write what is small into the object's head.
        ref = ray.put([pickle.PickleBuffer(piece) for piece in pieces(payload)])
        _, owner_address, _ = global_worker.core_worker.serialize_object_ref(ref)
    except Exception as error:  # Ray documents one of many
        raise StoreError(f"it could not be put into Ray's object store: {error}") from error
    _put.add(ref)
    stored = Stored(len(payload), ref.binary(), owner_address)
    return Segments((), (ref, *refs_of(payload)), stored)


class _Put:
    """What this process has put, as far as somebody may still hold it; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: set[bytes] = set()
        self._look_at = 64

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, ref: Any) -> None:
        with self._lock:
            self._names.add(ref.hex().encode())
            # So rarely that it costs nothing for each, however many are held.
            is_due = len(self._names) >= self._look_at
        if is_due:
            self.look()

    def look(self) -> bool:
        """Whether one of them is held, by this process or another one that Ray knows of."""
        with self._lock:
            self._names &= global_worker.core_worker.get_all_reference_counts().keys()
            self._look_at = max(64, 2 * len(self._names))
            return bool(self._names)


_put = _Put()


def has_put() -> bool:
    """Whether anything that this process has put may still be held; does not block."""
    return bool(_put)


def wait_released(timeout_s: float) -> bool:
    """Return once nobody holds what this process has put, which ends with it; False if too late."""
    until_s = time.monotonic() + timeout_s
    while ray.is_initialized() and _put.look():
        if time.monotonic() >= until_s:
            return False
        time.sleep(LOOK_AGAIN_S)
    return True


def reference(stored: Stored) -> Any:
    """The ObjectRef of what another process has put, which has to keep it alive meanwhile.

    Raises:
        StoreError: It makes no sense.
    """
    owner_address = _checked(stored.owner_address)
    try:
        _check_connected()
        ref = ray.ObjectRef(stored.object_id, owner_address)
        # As for a ref that was unpickled outside of Ray's own calls.
        global_worker.core_worker.deserialize_and_register_object_ref(
            stored.object_id, ray.ObjectRef.nil(), owner_address, b""
        )
    except (ValueError, RuntimeError) as error:
        raise StoreError(f"there is no such object: {error}") from error
    return ref


def _checked(owner_address: bytes) -> bytes:
    # Ray's C++ looks at ids only when it uses them, and one of another length takes down the
    # process that does so: this replica, or the raylet of its node.
    try:
        owner = Address.FromString(owner_address)
    except DecodeError as error:
        raise StoreError(f"the address of its owner cannot be read: {error}") from error
    ids = [value for _, value in owner.ListFields() if isinstance(value, bytes)]
    if [len(i) for i in ids] != [_ID_BYTES] * 2 or not owner.ip_address or not owner.port:
        raise StoreError("the address of its owner is none")
    owner.DiscardUnknownFields()
    checked: bytes = owner.SerializeToString()
    return checked


def fetch(ref: Any, is_wanted: Callable[[], bool]) -> Segments:
    """The payload that an object holds, as views of it; blocks until it is on this node.

    Args:
        ref: Of the object.
        is_wanted: Asked again and again while it is not there.

    Raises:
        StoreError: It is lost, or is no payload, or is wanted no more.
    """
    while True:
        try:
            _check_connected()
            [(data, metadata, *_)] = global_worker.core_worker.get_objects([ref], LOOK_UP_MS)
            break
        except GetTimeoutError:
            if not is_wanted():
                raise StoreError("it is wanted no more") from None
        except Exception as error:
            raise StoreError(f"Ray cannot get it: {error}") from error
    if metadata != _OF_PYTHON or data is None:
        raise _no_payload(metadata)
    _, of_python = split_buffer(data)
    _, buffers = unpack_pickle5_buffers(of_python)
    return Segments([memoryview(buffer) for buffer in buffers])


def _no_payload(metadata: bytes | None) -> StoreError:
    # In place of an object that is lost Ray gives the number of an error.
    kind = (metadata or b"").split(b",")[0]
    if not kind.isdigit() or int(kind) not in ErrorType.values():
        return StoreError("the object is no payload")
    number = int(kind)
    return StoreError(f"Ray says {ErrorType.Name(number)} of it", owner_died=number == _OWNER_DIED)


def _check_connected() -> None:
    # Ray's own calls start a cluster where there is none (`_private/auto_init_hook.py`).
    if not ray.is_initialized():
        raise RuntimeError("Ray was shut down")
