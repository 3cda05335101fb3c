"""Handles that are bound to one replica, and the block of `async with handle.pin()`.

What a bound call does on its way is `caller/bound.py`. Here is what a handle knows of it, and how
`pin()` gets a replica chosen: as for a call, so it waits, is refused and ends as a call does.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Generator
from types import TracebackType
from typing import Any, Generic, TypeVar

from serve_grpc.caller.bound import not_bindable
from serve_grpc.caller.registry import UNREACHABLE
from serve_grpc.caller.router import Router
from serve_grpc.deadlines import deadline_after
from serve_grpc.errors import ServeGrpcError

__all__ = ["Binding", "Pin", "check_by_value", "check_reachable"]

H = TypeVar("H")


class Binding:
    """To which replica the calls of a handle and its copies go.

    Args:
        replica_id: Serve's unique id.

    Attributes:
        replica_id: As given.
        is_over: Whether the block that pinned it was left.
    """

    def __init__(self, replica_id: str) -> None:
        self.replica_id = replica_id
        self.is_over = False

    def __repr__(self) -> str:
        return f"<Binding to {self.replica_id}{' over' if self.is_over else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Elsewhere nobody knows when the block is left.
        return Binding, (self.replica_id,)

    def check_call(self, router: Router | None) -> None:
        """Refuse a call that cannot go to the replica, as far as that is known.

        Args:
            router: Of the handle; None where no replica can be reached from here.

        Raises:
            RuntimeError: The block of the pin was left.
            ServeGrpcError: No session of ours goes to the deployment.
        """
        if self.is_over:
            raise RuntimeError(
                f"the pin to replica {self.replica_id} is over: the block of "
                "`async with handle.pin()` was left; pin again, or use `options(replica_id=...)`"
            )
        check_reachable(router)

    def refuse_serve(self) -> None:
        """Refuse what Serve's own router would place: `choose_replica`, `broadcast`.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"this handle is bound to replica {self.replica_id}, and this call would go elsewhere: "
            "make it on a handle without replica_id"
        )


def check_by_value(options: Any) -> None:
    """Refuse to bind calls by reference: Serve alone places them.

    Args:
        options: Serve's, of a handle.

    Raises:
        ValueError: They are by reference.
    """
    if options._by_reference:
        raise ValueError(
            "only calls by value can be bound to one replica: give `_by_reference=False` with "
            "`replica_id`, and before `pin()`"
        )


def check_reachable(router: Router | None) -> None:
    """Refuse to bind calls where Serve's own transport carries them, as far as that is known.

    Raises:
        ServeGrpcError: It does.
    """
    reason = UNREACHABLE if router is None else router.feed.fallback_reason
    if reason is not None:
        raise ServeGrpcError(not_bindable(reason))


class Pin(Generic[H]):
    """What `handle.pin()` returns: a context manager for `async with`, for one use.

    It gives a copy of the handle whose calls all go to one replica, chosen when the block is
    entered. After the block `remote()` of that copy, and of what was made of it, raises
    `RuntimeError`; calls that are on their way go on.

    Args:
        handle: Of ours.

    Attributes:
        replica_id: Of the replica; None until the block is entered.

    Raises:
        ValueError: The handle calls by reference.
    """

    def __init__(self, handle: H) -> None:
        self.replica_id: str | None = None
        ours: Any = handle
        check_by_value(ours.handle_options)
        self._handle = ours
        self._pinned: Any = None

    def __repr__(self) -> str:
        return f"<Pin of {self._handle!r} to {self.replica_id}>"

    async def __aenter__(self) -> H:
        """Choose a replica, which waits as a call would.

        Raises:
            RuntimeError: It was entered before.
            ServeGrpcError: No session of ours goes to the deployment; or `timeout_s` passed
                (`DeadlineExceededError`).
            BackPressureError: `max_queued_requests` calls wait already.
            DeploymentUnavailableError: As of a call.
        """
        if self.replica_id is not None:
            raise RuntimeError("a pin is entered once; call `handle.pin()` again")
        self.replica_id = await self._choose()
        pinned: H = self._handle.options(replica_id=self.replica_id)
        self._pinned = pinned
        return pinned

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pinned._binding.is_over = True

    async def _choose(self) -> str:
        handle = self._handle
        router: Router | None = handle._data_router or handle._find_router()
        if handle._binding is not None:  # it is pinned to the same replica, for a block of its own
            handle._binding.check_call(router)
            bound_to: str = handle._binding.replica_id
            return bound_to
        check_reachable(router)
        assert router is not None
        choice = handle._maker.new_choice(router, deadline_after(handle._timeout_s))
        # If the deployment has a request router of its own, that one chooses.
        make = functools.partial(_ServesChoice, handle, router)
        choice.make_serve_call = functools.partial(contextvars.copy_context().run, make)
        call = choice.call
        router.mailbox.run(router.submit, choice)
        replica_id: str = await call
        return replica_id


class _ServesChoice:
    """The choice of Serve's own router, in the place of a response of Serve's (`ServeCall`)."""

    def __init__(self, handle: Any, router: Router) -> None:
        check_reachable(router)
        self._handle = handle

    async def _fetch_future_result_async(self) -> None:
        """No replica has a call."""

    def __await__(self) -> Generator[Any, None, str]:
        return self._choose().__await__()

    async def _choose(self) -> str:
        # With a slot reserved, as Serve's router chooses; it is given back at once.
        async with self._handle.choose_replica() as selection:
            replica_id: str = selection.replica_id
            return replica_id

    def cancel(self) -> None:
        """The task that awaits it was cancelled, and so it was."""
