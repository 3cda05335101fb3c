"""Makes the calls of one handle: what it says of each of them, and its payload.

In the thread of `handle.remote()`. What becomes of a call afterwards is the router's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from serve_grpc._serve.requests import current_request, generate_request_id
from serve_grpc.caller.call import Call
from serve_grpc.caller.context import CallWithContext
from serve_grpc.caller.router import Router
from serve_grpc.config import settings
from serve_grpc.errors import MessageTooLargeError, ServeGrpcError
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.serialization import get_serializer

__all__ = ["CallMaker"]


class CallMaker:
    """Makes calls with the options of one handle.

    Args:
        deployment_name, app_name: What is called.
        options: Serve's of the handle.
        is_idempotent: Whether calls may be repeated after they may have started.

    Attributes:
        request_serializer, response_serializer: Those that the options name.
    """

    def __init__(
        self, deployment_name: str, app_name: str, options: Any, *, is_idempotent: bool
    ) -> None:
        self._deployment_name = deployment_name
        self._app_name = app_name
        self._options = options
        self._is_idempotent = is_idempotent
        self._envelopes: dict[tuple[str, str], Envelope] = {}
        self.request_serializer = get_serializer(options.request_serialization)
        self.response_serializer = get_serializer(options.response_serialization)

    def new_call(self, router: Router, deadline_s: float | None) -> Call:
        """A call of the request that this code runs for, without payload."""
        request_id, parent_id, route, app_name, client, grpc_context = current_request()
        options = self._options
        place = route, app_name
        envelope = self._envelopes.get(place)
        if envelope is None:
            envelope = self._envelopes[place] = Envelope(
                method=options.method_name,
                request_serializer=self.request_serializer.name,
                response_serializer=self.response_serializer.name,
                stream=options.stream,
                route=route,
                app_name=app_name,
            )
        fields = RequestFields(
            envelope,
            b"",
            request_id or generate_request_id(),
            multiplexed_model_id=options.multiplexed_model_id,
            session_id=options.session_id,
            credit_items=settings.stream_window_items,
            credit_bytes=settings.stream_window_bytes,
            client=client,
        )
        new_call: Callable[..., Call] = Call
        if (grpc_context is not None or router.is_tracing) and not router.is_native:
            new_call = functools.partial(
                CallWithContext,
                deployment_name=self._deployment_name,
                app_name=self._app_name,
                grpc_context=grpc_context,
            )
        call = new_call(
            fields,
            owner=router,
            mailbox=router.mailbox,
            response_loads=self.response_serializer.load_response,
            deadline_s=deadline_s,
            is_idempotent=self._is_idempotent,
            ended=router.tally.ended,
        )
        if parent_id:
            call.become_child(parent_id)
        return call

    def serialize(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Give the call its payload; False if that failed, and the call with it."""
        try:
            payload = self.request_serializer.dump_request(args, kwargs)
            if len(payload) > settings.max_message_bytes:
                raise MessageTooLargeError(len(payload), settings.max_message_bytes, "request")
        except ServeGrpcError as error:
            error.request_id = call.fields.request_id
            call.fail(error)
            return False
        call.fields.payload = payload
        return True
