"""From what a caller sent to an invocation, through either door."""

from __future__ import annotations

import itertools
import time
from functools import partial

from serve_grpc._serve.requests import generate_request_id
from serve_grpc.carriers.grpc.plain import PlainCall
from serve_grpc.mailbox import Mailbox
from serve_grpc.protocol.arrival import InboundRequest
from serve_grpc.protocol.envelope import InputPlace
from serve_grpc.replica.inputs import Inputs, stream_error
from serve_grpc.replica.invocation import Invocation
from serve_grpc.replica.replies import PlainReplies, SessionReplies

__all__ = ["from_plain_call", "from_session", "inputs_of", "plain_input_of"]


def _deadline_s(timeout_s: float | None) -> float | None:
    # What is left travels, not a time of day: the clocks of two machines need not agree.
    return time.monotonic() + timeout_s if timeout_s else None


def _internal_id(request_id: str) -> str:
    """An id that no other request of this process has.

    Serve registers the calls that a request makes under it, to cancel them with their parent; the
    request's own id is its caller's to choose, and two requests may have the same.
    """
    return f"{request_id}/{next(_serial)}"


_serial = itertools.count(1)


def from_session(replies: SessionReplies, inbound: InboundRequest) -> Invocation:
    """The invocation of a request that came over a session."""
    template, request = inbound.template, inbound.request
    timeout_ms = request.timeout_ms
    request_id = request.request_id
    # By position: names take longer, and this is done for each request.
    invocation = Invocation(
        replies,
        inbound.id,
        template.method,
        template.request_serializer,
        template.response_serializer,
        template.stream,
        inbound.payload,
        request_id,
        _internal_id(request_id),
        template.route,
        request.multiplexed_model_id,
        request.session_id,
        request.client,
        _deadline_s(timeout_ms / 1000) if timeout_ms else None,
    )
    if replies.memory is not None:
        invocation.memory = replies.memory
    if invocation.is_stream:
        invocation.credit = request.credit_items, request.credit_bytes
    return invocation


def inputs_of(
    replies: SessionReplies,
    inbound: InboundRequest,
    window: tuple[int, int],
    to_main: Mailbox,
    *,
    may_unpickle: bool,
) -> Inputs:
    """The streams among the arguments of a request that has some.

    Args:
        replies: Where credit for them goes.
        inbound: The request.
        window: Items and bytes that the caller may send ahead, of each.
        to_main: To the replica's main loop.
        may_unpickle: Whether exceptions that come pickled may be loaded.
    """
    request = inbound.request
    # Not the message's own field, which would keep the whole batch that it came with.
    places = [InputPlace(place.position, place.name) for place in request.inputs]
    grant = partial(to_main.run, replies.grant_input, inbound.id)
    load_error = partial(stream_error, request_id=request.request_id, may_unpickle=may_unpickle)
    return Inputs(places, inbound.template.request_serializer, window, grant, load_error)


def plain_input_of(
    call: PlainCall,
    serializer: str,
    window: tuple[int, int],
    to_main: Mailbox,
    *,
    may_unpickle: bool,
) -> Inputs | None:
    """The stream among the arguments of a request through the plain door; None without.

    Args:
        call: What came.
        serializer: Name of the one of the request.
        window, to_main, may_unpickle: As of `inputs_of`.
    """
    input_ = call.input
    if input_ is None:
        return None
    grant = partial(to_main.run, input_.grant)
    request_id = call.request.request_id
    load_error = partial(stream_error, request_id=request_id, may_unpickle=may_unpickle)
    inputs = Inputs([input_.place], serializer, window, grant, load_error)
    input_.feed = inputs.feed
    return inputs


def from_plain_call(replies: PlainReplies, call: PlainCall, credit: tuple[int, int]) -> Invocation:
    """The invocation of a request that came through the plain door.

    Args:
        replies: Where its outputs go.
        call: What came; fields that its client left out have Serve's defaults.
        credit: (items, bytes) that a stream starts with; a plain client grants none itself.
    """
    request = call.request
    serializer = request.request_serializer or "cloudpickle"
    request_id = request.request_id or generate_request_id()
    return Invocation(
        replies=replies,
        call_id=0,
        method=request.method or "__call__",
        request_serializer=serializer,
        response_serializer=request.response_serializer or serializer,
        is_stream=call.is_stream,
        payload=request.payload,
        request_id=request_id,
        internal_request_id=_internal_id(request_id),
        multiplexed_model_id=request.multiplexed_model_id,
        session_id=request.session_id,
        deadline_s=_deadline_s(call.timeout_s),
        credit=credit,
    )
