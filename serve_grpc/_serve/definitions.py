"""What Serve ships to a replica as a deployment's code, and the metadata that it publishes.

The user's class or function is not touched: not subclassed, not copied, nothing set on it. What is
ours travels beside it, in the pickle that a replica loads, and our metadata are gathered beside
those of the user's `record_replica_metadata`, which Serve looks for on the user's object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ray import cloudpickle
from ray._private import worker as ray_worker
from ray.serve.deployment import Deployment

__all__ = ["add_metadata", "on_load"]

Metadata = Callable[[], Awaitable[dict[str, Any]]]


def on_load(deployment: Deployment, callback: Callable[[Any], None]) -> None:
    """Have `callback(code)` called in each process that loads the deployment's code, replicas above
    all; changes the deployment. The callback is pickled."""
    # `ReplicaConfig.create` has pickled the code already, and Serve ships these bytes as they are.
    config = deployment._replica_config
    config.serialized_deployment_def = cloudpickle.dumps(
        _Definition(config.deployment_def, callback)
    )


class _Definition:
    """Unpickled, it is the code itself."""

    def __init__(self, code: Any, callback: Callable[[Any], None]) -> None:
        self._parts = code, callback

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, self._parts


def _load(code: Any, callback: Callable[[Any], None]) -> Any:
    callback(code)
    return code


def add_metadata(code: Any, metadata: Metadata) -> None:
    """Have the replica that runs `code` publish these metadata beside the user's; from `on_load`.

    Args:
        code: The object that Serve runs.
        metadata: Awaited on the user's loop after the constructor and the user's own hook, before
            the replica takes traffic.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return  # not a replica, whose actor loads the code in its async constructor
    # `ReplicaActor.__init__` (Ray 2.60, `serve/_private/replica.py`) makes its `_replica_impl`
    # right after it has loaded the code, without an `await`: in the loop's next turn it is there,
    # and not yet initialized.
    loop.call_soon(_find_replica, code, metadata)


def _find_replica(code: Any, metadata: Metadata) -> None:
    # By identity: what was loaded for another reason is no replica's code.
    for actor in ray_worker.global_worker.actors.values():
        replica = getattr(actor, "_replica_impl", None)
        if replica is not None and replica._user_callable_wrapper._deployment_def is code:
            _add_to(replica._user_callable_wrapper, metadata)


def _add_to(user_code: Any, metadata: Metadata) -> None:
    # `initialize_callable` ends by looking the user's hook up; right after it `Replica.initialize`
    # asks whether there is one, and publishes what it returns, once and for all.
    initialize = user_code.initialize_callable

    async def initialize_and_add() -> Any:
        asgi_app = await initialize()
        users = user_code._user_record_replica_metadata
        user_code._user_record_replica_metadata = _with(metadata, user_code, users)
        return asgi_app

    user_code.initialize_callable = initialize_and_add


def _with(metadata: Metadata, user_code: Any, users: Callable[[], Any] | None) -> Callable[[], Any]:
    async def both() -> Any:
        # As `UserCallableWrapper._call_user_record_replica_metadata` calls it.
        theirs = None
        if users is not None:
            theirs, _ = await user_code._call_func_or_gen(users)
        if theirs is not None and not isinstance(theirs, dict):
            return theirs  # Serve says what is wrong
        # Ours last: an entry of the user's by our name would send callers elsewhere.
        return {**(theirs or {}), **await metadata()}

    return both
