"""Which serializers may be used: what a deployment takes, and what this process takes.

A list is a frozen set of names in lower case; None means all that are registered. A deployment's
list travels beside its code and stands in the metadata of its replicas, a process' list in
`SERVE_GRPC_SERIALIZERS`. Where both hold, only what is in both may be used. Pickle is refused by a
list that names neither "pickle" nor "cloudpickle"; pickled exceptions then travel as text.
"""

from __future__ import annotations

from collections.abc import Iterable

from serve_grpc.errors import SerializationError
from serve_grpc.serialization import PICKLES, get_serializer, serializer_names

__all__ = [
    "PROCESS_LIST",
    "AllowList",
    "allow_list",
    "check_allowed",
    "check_call",
    "check_process_list",
    "narrowed",
    "takes_pickle",
]

AllowList = frozenset[str] | None

PROCESS_LIST = "SERVE_GRPC_SERIALIZERS"


def allow_list(names: Iterable[str] | None) -> AllowList:
    """The list of these names.

    Raises:
        TypeError: It is not a collection of strings.
        ValueError: It is empty, or a name belongs to no registered serializer.
    """
    if names is None:
        return None
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise TypeError(
            f"serializers must be a collection of names, as ('msgpack', 'orjson'), got {names!r}"
        )
    known = frozenset(get_serializer(name).name for name in names)
    if not known:
        raise ValueError("serializers names none; leave it out to allow all")
    return known


def narrowed(first: AllowList, second: AllowList) -> AllowList:
    """The serializers that both lists allow; there may be none."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def takes_pickle(allowed: AllowList) -> bool:
    """Whether pickles may be sent and read."""
    return allowed is None or not PICKLES.isdisjoint(allowed)


def check_process_list(allowed: AllowList) -> None:
    """Refuse names of the process' list that no serializer has; once all are registered.

    Raises:
        ValueError: There are such names.
    """
    # Not at import, where the variable is read: the app may register its serializers after that.
    unknown = sorted((allowed or frozenset()).difference(serializer_names()))
    if unknown:
        raise ValueError(
            f"{PROCESS_LIST} names {_listed(unknown)}, which is no serializer of this process; "
            f"known are {_listed(serializer_names())}"
        )


def check_call(
    request: str,
    response: str,
    *,
    process: AllowList,
    deployment: AllowList = None,
    name: str = "",
) -> None:
    """Refuse a call, at its caller, whose serializers the process or the deployment refuses.

    Args:
        request, response: Names of the call's serializers.
        process, deployment: What they allow.
        name: Of the deployment.

    Raises:
        SerializationError: One is not allowed; the text says by whom, and names those that are.
    """
    check_allowed(process, request, response, f"this process ({PROCESS_LIST})")
    check_allowed(deployment, request, response, f"deployment {name!r}")


def check_allowed(allowed: AllowList, request: str, response: str, whose: str) -> None:
    """Refuse a call whose serializers are not in one list, before anything of it is decoded.

    Args:
        allowed: The list.
        request, response: Names of the call's serializers.
        whose: Who allows no others: "deployment 'X'".

    Raises:
        SerializationError: As of `check_call`.
    """
    if allowed is None:
        return
    # At a replica the names are a caller's text: of any length, and in any case.
    for direction, name in (("request", request), ("response", response)):
        if name.lower() not in allowed:
            raise SerializationError(
                f"{whose} takes {_listed(allowed)} only, and this call's {direction} serializer "
                f"is {name[:100]!r}; choose another one with "
                f"`handle.options(request_serialization=..., response_serialization=...)`",
                serializer=name,
                direction=direction,
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "no serializer"
