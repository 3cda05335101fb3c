"""What the values of `handle.options(...)` must look like, and how a handle shows them.

Wrong ones fail there, not in a call.
"""

from __future__ import annotations

from typing import Any

from serve_grpc.caller.registry import transport_of
from serve_grpc.caller.router import Router
from serve_grpc.protocol.status import valid_text
from serve_grpc.serialization import get_serializer

__all__ = ["MAX_NAME_CHARACTERS", "MAX_TIMEOUT_S", "check_options", "described"]

MAX_NAME_CHARACTERS = 4_096
"""Of a method, model or session; they travel in frames, which are small."""
MAX_TIMEOUT_S = 4_000_000
"""46 days: what fits into the wire's 32 bits of milliseconds."""
_HINTS = {"replica_id": " (the `replica_id` of a response is None until the call was sent)"}
_TEXT_OPTIONS = ("method_name", "multiplexed_model_id", "session_id", "replica_id")
_FLAG_OPTIONS = ("stream", "_prefer_local_routing", "_by_reference", "idempotent")


def described(handle: Any, router: Router | None, **ours: Any) -> str:
    """The `repr` of a handle: what it calls, and the options that are not as by default.

    Args:
        handle: Of ours.
        router: Of its calls by value, if there is one.
        ours: Options that Serve does not have, by name.
    """
    options = handle.handle_options
    defaults = {**vars(type(options)()), "_by_reference": options._by_reference}
    shown: dict[str, Any] = {"deployment": handle.deployment_name, "app": handle.app_name}
    shown |= {name: value for name, value in vars(options).items() if value != defaults[name]}
    shown |= {name: value for name, value in ours.items() if value}
    reason = router.feed.fallback_reason if router is not None else None
    shown["transport"] = transport_of(router, options._by_reference, reason)
    return f"DeploymentHandle({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def check_options(given: dict[str, Any]) -> None:
    """Check the options that were given, by name; serializers are replaced by their names.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: An unknown serializer, a text that is too long or no valid unicode, a timeout
            that is not positive, or the id of no replica.
    """
    for name in _TEXT_OPTIONS:
        if name in given and not isinstance(given[name], str):
            hint = _HINTS.get(name, "")
            raise TypeError(f"{name} must be a str, got {type(given[name]).__name__}{hint}")
        text = given.get(name, "")
        if len(text) > MAX_NAME_CHARACTERS or text != valid_text(text):
            raise ValueError(
                f"{name} must be valid unicode of at most {MAX_NAME_CHARACTERS} characters"
            )
    if given.get("replica_id") == "":
        raise ValueError("replica_id must be the id of a replica, got an empty text")
    for name in _FLAG_OPTIONS:
        if name in given and not isinstance(given[name], bool):
            raise TypeError(f"{name} must be a bool, got {type(given[name]).__name__}")
    for name in ("request_serialization", "response_serialization"):
        if name in given:
            given[name] = get_serializer(given[name]).name
    timeout_s = given.get("timeout_s")
    if timeout_s is not None:
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)):
            raise TypeError(f"timeout_s must be a number, got {type(timeout_s).__name__}")
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"timeout_s must be above 0 and at most {MAX_TIMEOUT_S}")
