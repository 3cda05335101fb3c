"""The request that is being handled here: its context, and the calls it made.

Serve keeps both: a context variable, and a registry of a request's children through which a
cancelled parent cancels them. Ours use the same ones, so either transport sees the other's.
"""

from __future__ import annotations

from random import getrandbits
from typing import Any, Protocol

from ray.serve import context as serve_context
from ray.serve._private.utils import inside_ray_client_context

__all__ = [
    "Cancellable",
    "add_child",
    "cancel_children",
    "current_request",
    "enter_request",
    "generate_request_id",
    "inside_ray_client_context",
    "remove_child",
]


class Cancellable(Protocol):
    """A call that a parent may cancel, from any thread."""

    def cancel(self) -> None:
        """Cancel the call; nothing happens once it is over."""


def generate_request_id() -> str:
    """A random UUID of version 4, as Serve's own function of this name makes them."""
    # Not by `uuid.UUID`, which takes four times as long, for each call outside of a request.
    digits = f"{getrandbits(128):032x}"
    variant = "89ab"[getrandbits(2)]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def current_request() -> tuple[str, str, str, str, str, Any]:
    """What a call inherits from the request that makes it; empty strings outside of one.

    Returns:
        Request id, internal request id, route, application name, client address, and the context
        of the gRPC request that came in through an ingress, or None.
    """
    context: Any = serve_context._serve_request_context.get()
    if context is None:
        return "", "", "", "", "", None
    return (
        context.request_id,
        context._internal_request_id,
        context.route,
        context.app_name,
        context._client,
        context.grpc_context,
    )


def enter_request(fields: dict[str, Any]) -> None:
    """Make this context one of a request; `fields` are those of `_RequestContext`, all of them."""
    # The frozen dataclass' own constructor takes longer than the rest of a call's bookkeeping. No
    # default is filled in here, so a field that is left out is missing where the user's code asks.
    context = object.__new__(serve_context._RequestContext)
    object.__setattr__(context, "__dict__", fields)
    serve_context._serve_request_context.set(context)


class _Children(dict[Any, Any]):
    """The calls of one request, of either transport.

    When a request is cancelled, Serve's main thread walks over `values()` and cancels each. A call
    that ends meanwhile, in another thread or because of that very cancel, takes itself out, so the
    walk is over a copy.
    """

    def values(self) -> list[Any]:  # type: ignore[override]
        return list(super().values())


def add_child(parent_id: str, child_id: int, call: Cancellable) -> None:
    """Note that the request `parent_id` (an internal id) made this call."""
    # A `defaultdict(dict)` of Serve's, which makes entries of our kind from here on, for its own
    # children too.
    registry: Any = serve_context._in_flight_requests
    if registry.default_factory is not _Children:
        registry.default_factory = _Children
    registry[parent_id][child_id] = call


def remove_child(parent_id: str, child_id: int) -> None:
    """Forget a call that is over."""
    # Not `[]`: a defaultdict would make an entry, which nobody takes out.
    children = serve_context._in_flight_requests.get(parent_id)
    if children is not None:
        children.pop(child_id, None)
        if not children:
            serve_context._in_flight_requests.pop(parent_id, None)


def cancel_children(parent_id: str) -> None:
    """Cancel every call the request still waits for, over either transport."""
    # Calls that Serve's own router has not placed yet are tasks of its loop; `Task.cancel` may only
    # be called there.
    pending = serve_context._requests_pending_assignment.get(parent_id)
    for task in list(pending.values()) if pending else ():
        task.get_loop().call_soon_threadsafe(task.cancel)
    children = serve_context._in_flight_requests.get(parent_id)
    for call in list(children.values()) if children else ():
        call.cancel()
