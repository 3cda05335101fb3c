"""Pickles that tell which ObjectRefs they name.

Ray keeps an object alive while a process is known to hold a reference to it. It knows of those in
the arguments and results of its own calls, which it pickles "in band"; what is pickled outside of
them it pins until the process ends, as nobody would tell it when to let go. Here a pickle is
written in band, and its payload holds the refs; who sends it lends them (`caller/lending.py`). So
with the handles of actors. Ray counts those by a ref as well, but that one must not travel by
itself: whoever gets it asks the actor's owner for a value, and both wait for it until the end.
"""

from __future__ import annotations

import copyreg
import pickle
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray import cloudpickle
from ray._private import worker as ray_worker
from ray.actor import ActorHandle

from serve_grpc import pickling
from serve_grpc.payload import Memory, Payload, with_refs

__all__ = ["InBand", "cloudpickled", "contain", "pickled"]


def cloudpickled(value: Any, memory: Memory | None = None) -> Payload:
    """The pickle of a value that needs cloudpickle, with the refs it names.

    Ray's copy of cloudpickle knows reducers that Ray registers. `memory` as in `pickling.dump`.
    """
    return _dump(value, _CloudPickler, memory)


def pickled(value: Any, memory: Memory | None = None) -> Payload:
    """The pickle of a value, with the refs it names; those are pickled as cloudpickle does it."""
    return _dump(value, _Pickler, memory)


def contain(refs: Iterable[Any]) -> None:
    """Count `refs` as named by the pickle that this thread is writing."""
    _named.refs.update(refs)


class _Named(threading.local):
    """The refs that the pickle being written in this thread has named so far."""

    refs: set[Any]

    def __init__(self) -> None:
        self.refs = set()


_named = _Named()


def _context() -> Any:
    return ray_worker.global_worker.get_serialization_context()


def _dump(value: Any, pickler: type[pickle.Pickler], memory: Memory | None) -> Payload:
    with InBand() as refs:
        payload = pickling.dump(value, pickler, memory)
    return with_refs(payload, tuple(refs)) if refs else payload


class InBand:
    """Within it, what this thread pickles is not pinned; at its end the set has the refs named."""

    def __enter__(self) -> set[Any]:
        # Ray's flag and its set of refs belong to the thread (`SerializationContext._thread_local`,
        # in `ray/_private/serialization.py`), so other threads pickle as ever.
        self._refs: set[Any] = set()
        self._context = context = _context()
        self._is_nested = context.is_in_band_serialization()
        if self._is_nested:  # in a pickle of Ray's, or another one of ours
            self._of_outer = context.get_and_clear_contained_object_refs(), _named.refs
            _named.refs = set()
        context.set_in_band_serialization()
        return self._refs

    def __exit__(self, *_: object) -> None:
        context = self._context
        self._refs |= context.get_and_clear_contained_object_refs()
        if _named.refs:
            self._refs |= _named.refs
            _named.refs = set()
        if not self._is_nested:
            context.set_out_of_band_serialization()
            return
        # What the outer pickle had named before is put back, or Ray would not count it.
        of_rays, _named.refs = self._of_outer
        for ref in of_rays:
            context.add_contained_object_ref(ref, allow_out_of_band_serialization=True)


def _reduce(ref: Any) -> Any:
    context = _context()
    # A `__reduce__` of the user's that ran before may have called Ray, which then leaves it out of
    # band; one that runs later may, and then takes what it finds for its own.
    context.set_in_band_serialization()
    _named.refs |= context.get_and_clear_contained_object_refs()
    reduced = cloudpickle.CloudPickler.dispatch[type(ref)](ref)
    # The object itself is kept, not what Ray has collected: of an actor's handle that is a ref
    # which must not travel by itself (see the top). A weak handle keeps no actor alive, and none is
    # collected of it.
    if context.get_and_clear_contained_object_refs():
        _named.refs.add(ref)
    return reduced


def _table(of_pickler: Mapping[type, Any]) -> dict[type, Any]:
    """A pickler's dispatch table: for refs ours, for the rest another one.

    C's pickler asks it for each object. That a type is not there costs it next to nothing with a
    plain dict, and microseconds where a method in Python says so. Hence a copy for each pickler:
    the tables behind it may grow at any time.
    """
    table: dict[type, Any] = {}
    for one in reversed(getattr(of_pickler, "maps", (of_pickler,))):  # cloudpickle's is a chain
        table.update(one)
    table[ray.ObjectRef] = table[ActorHandle] = _reduce
    return table


class _CloudPickler(cloudpickle.Pickler):
    @property
    def dispatch_table(self) -> Mapping[type, Any]:
        return _table(cloudpickle.Pickler.dispatch_table)


class _Pickler(pickle.Pickler):
    @property
    def dispatch_table(self) -> Mapping[type, Any]:  # type: ignore[override]
        return _table(copyreg.dispatch_table)
