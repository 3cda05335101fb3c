"""A behaviour of Ray Serve, tried over each transport: one test here, one row of the documentation.

    @behaviour("Streams", "A generator's items arrive in order")
    def test_items_arrive_in_order(transport, streamer):
        handle = transport.over(streamer).options(stream=True)
        ...

The test runs three times. Where a transport does not have the behaviour, the decorator says what it
does instead, and the test must fail there (`xfail`, strict), so that the page cannot go stale.
Where the transports differ on purpose, `@difference` says what each does, and why; the test asserts
what it finds over the transport of its run.
`python -m tests.ray.compat.page` writes docs/compatibility.md from these decorators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from ray import serve

__all__ = [
    "BY_REFERENCE",
    "OURS",
    "SERVES_GRPC",
    "TRANSPORTS",
    "Behaviour",
    "Difference",
    "behaviour",
    "difference",
    "over",
]

BY_REFERENCE = "by reference"
SERVES_GRPC = "Serve's gRPC"
OURS = "serve_grpc"
TRANSPORTS = (BY_REFERENCE, SERVES_GRPC, OURS)

_Test = TypeVar("_Test", bound=Callable[..., Any])


@dataclass(frozen=True)
class Behaviour:
    """What the page says of one test.

    Attributes:
        section: Heading that the row stands under; `page.SECTIONS` has them in order.
        text: The behaviour, as a short sentence that is true where it is supported.
        differs: For each transport without it, what happens instead.
    """

    section: str
    text: str
    differs: dict[str, str]


def behaviour(
    section: str,
    text: str,
    *,
    by_reference: str = "",
    serves_grpc: str = "",
    ours: str = "",
    raises: type[BaseException] | tuple[type[BaseException], ...] = Exception,
) -> Callable[[_Test], _Test]:
    """Mark a test that takes the fixture `transport`.

    Args:
        section, text: See `Behaviour`.
        by_reference, serves_grpc, ours: What that transport does instead; "" where it complies.
        raises: How the test fails where it has to.
    """
    told = {BY_REFERENCE: by_reference, SERVES_GRPC: serves_grpc, OURS: ours}
    differs = {transport: what for transport, what in told.items() if what}

    def mark(test: _Test) -> _Test:
        test.behaviour = Behaviour(section, text, differs)  # type: ignore[attr-defined]
        params = [
            pytest.param(
                name,
                marks=[pytest.mark.xfail(strict=True, reason=differs[name], raises=raises)]
                if name in differs
                else [],
            )
            for name in TRANSPORTS
        ]
        decorated: _Test = pytest.mark.parametrize("transport", params, indirect=True)(test)
        return decorated

    return mark


@dataclass(frozen=True)
class Difference:
    """What the page says of a test of something that the transports do differently.

    Attributes:
        text: What it is about.
        does: What happens over each transport.
        why: The reason for what serve_grpc does.
    """

    text: str
    does: dict[str, str]
    why: str


def difference(
    text: str, *, by_reference: str, serves_grpc: str, ours: str, why: str
) -> Callable[[_Test], _Test]:
    """Mark a test that takes the fixture `transport`. Args: as of `Difference`."""
    does = {BY_REFERENCE: by_reference, SERVES_GRPC: serves_grpc, OURS: ours}

    def mark(test: _Test) -> _Test:
        test.difference = Difference(text, does, why)  # type: ignore[attr-defined]
        decorated: _Test = pytest.mark.parametrize("transport", TRANSPORTS, indirect=True)(test)
        return decorated

    return mark


def over(transport: str, handle: Any) -> Any:
    """`handle`'s deployment, called over this transport; also for use inside replicas.

    Only serve_grpc's handle keeps the options that `handle` has.
    """
    if transport == SERVES_GRPC:
        serves = serve.get_deployment_handle(handle.deployment_name, handle.app_name)
        return serves.options(_by_reference=False)
    return handle.options(_by_reference=transport == BY_REFERENCE)
