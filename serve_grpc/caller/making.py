"""Makes the calls of one handle: what it says of each of them, and its payload.

In the thread of `handle.remote()`. What becomes of a call afterwards is the router's.
"""

from __future__ import annotations

from typing import Any

from serve_grpc._serve.requests import current_request, generate_request_id
from serve_grpc.allow_list import AllowList, check_call
from serve_grpc.caller.bound import Choice
from serve_grpc.caller.call import Call
from serve_grpc.caller.context import take_context_along
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.inputs import Inputs
from serve_grpc.caller.misplaced import check_streams
from serve_grpc.caller.outcomes import Raised
from serve_grpc.caller.router import Router
from serve_grpc.config import settings
from serve_grpc.errors import MessageTooLargeError, ServeGrpcError
from serve_grpc.payload import Memory, Payload
from serve_grpc.protocol.caller import Envelope, RequestFields
from serve_grpc.serialization import get_serializer
from serve_grpc.threads import in_thread

__all__ = ["CallMaker"]


class CallMaker:
    """Makes calls with the options of one handle.

    Args:
        deployment_name, app_name: What is called.
        options: Serve's of the handle.
        is_idempotent: Whether calls may be repeated after they may have started.
        bound_to: Id of the only replica that they may go to; None for any.

    Attributes:
        bound_to: As given.
        request_serializer, response_serializer: Those that the options name.
    """

    def __init__(
        self,
        deployment_name: str,
        app_name: str,
        options: Any,
        *,
        is_idempotent: bool,
        bound_to: str | None = None,
    ) -> None:
        self._deployment_name = deployment_name
        self._app_name = app_name
        self._options = options
        self._is_idempotent = is_idempotent
        self.bound_to = bound_to
        # One object for all calls that look alike: a session sends it once, as a template.
        self._envelopes: dict[tuple[str, str], Envelope] = {}
        self.request_serializer = get_serializer(options.request_serialization)
        self.response_serializer = get_serializer(options.response_serialization)
        self._response_loads = self.response_serializer.load_response

    def new_delivery(
        self, router: Router, deadline_s: float | None, inputs: Inputs | None = None
    ) -> Delivery:
        """The way of a call of the request that this code runs for; without payload."""
        request_id, parent_id, route, app_name, client, grpc_context = current_request()
        options = self._options
        origin = route, app_name
        envelope = self._envelopes.get(origin)
        if envelope is None:
            envelope = self._envelopes[origin] = self._new_envelope(route, app_name)
        # By position: names take longer, and this is done for each call.
        fields = RequestFields(
            envelope,
            b"",
            request_id or generate_request_id(),  # one id in all deployments that it passes
            0,
            options.multiplexed_model_id,
            options.session_id,
            settings.stream_window_items,
            settings.stream_window_bytes,
            client,
        )
        call = Call(fields, router.mailbox, self._response_loads)
        delivery = Delivery(  # as `router.new_delivery`, for one call less each time
            call,
            router.line if self.bound_to is None else router.line.bound.to(self.bound_to),
            deadline_s=deadline_s,
            is_idempotent=self._is_idempotent,
            ended=router.tally.ended,
        )
        if inputs is not None:
            fields.inputs, delivery.inputs = inputs.places, inputs
            inputs.belong_to(delivery)
        if (grpc_context is not None or router.is_tracing) and not self._is_serve_routed(router):
            take_context_along(
                delivery,
                deployment_name=self._deployment_name,
                app_name=self._app_name,
                grpc_context=grpc_context,
            )
        if parent_id:  # last, for from here on its cancel may reach the call, from any thread
            call.become_child(parent_id)
        return delivery

    def _is_serve_routed(self, router: Router) -> bool:
        # Then Serve's router makes the spans. It has no say in calls that are bound.
        feed = router.feed if self.bound_to is None else router.line.bound.feed
        return feed.is_serve_routed

    def new_choice(self, router: Router, deadline_s: float | None) -> Choice:
        """The choice of a replica, as it would be made for a call of now."""
        request_id, _, route, app_name, *_ = current_request()
        options = self._options
        fields = RequestFields(
            Envelope("a choice of a replica", "noop", "noop", False, route, app_name),
            b"",
            request_id or generate_request_id(),
            multiplexed_model_id=options.multiplexed_model_id,
            session_id=options.session_id,
        )
        call = Call(fields, router.mailbox, self._response_loads)
        return Choice(call, router.line, deadline_s=deadline_s)

    def _new_envelope(self, route: str, app_name: str) -> Envelope:
        return Envelope(
            method=self._options.method_name,
            request_serializer=self.request_serializer.name,
            response_serializer=self.response_serializer.name,
            stream=self._options.stream,
            route=route,
            app_name=app_name,
        )

    def is_refused(self, delivery: Delivery, deployment: AllowList) -> bool:
        """End a call whose serializers are not allowed; before its arguments are serialized.

        Args:
            delivery: Of a new call.
            deployment: What its replicas take, as far as is known.
        """
        process = settings.serializers
        if process is None and deployment is None:
            return False
        fields = delivery.call.fields
        names = fields.envelope.request_serializer, fields.envelope.response_serializer
        try:
            check_call(*names, process=process, deployment=deployment, name=self._deployment_name)
        except ServeGrpcError as error:
            self._end_raised(delivery, error)
            return True
        return False

    def serialize(
        self,
        delivery: Delivery,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        memory: Memory | None,
    ) -> bool:
        """Give the call its payload; False if that failed, and the call with it.

        Args:
            delivery: Of the call.
            args, kwargs: Values of any kind.
            memory: Where large pieces go; None for the heap.

        Raises:
            TypeError: There is a stream inside of an argument; the call has ended.
        """
        try:  # as `_dump`, for one call less each time
            payload = self.request_serializer.dump_request(args, kwargs, memory)
            if len(payload) > settings.max_message_bytes:
                self._check_size(payload)
        except ServeGrpcError as error:
            self._end_raised(delivery, error)
            check_streams(args, kwargs, most=None)
            return False
        delivery.call.fields.payload = payload
        return True

    async def serialize_in_thread(
        self,
        delivery: Delivery,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        memory: Memory | None,
    ) -> None:
        """As `serialize`, on a loop that must not run the values' own code."""
        try:
            delivery.call.fields.payload = await in_thread(self._dump, args, kwargs, memory)
        except ServeGrpcError as error:
            self._end_raised(delivery, error)

    def _dump(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], memory: Memory | None
    ) -> Payload:
        payload = self.request_serializer.dump_request(args, kwargs, memory)
        self._check_size(payload)
        return payload

    def _check_size(self, payload: Payload) -> None:
        # The replica's limit may be lower, and only there it is known whether what is over the
        # limit may go by the object store: that is checked when one is chosen (`Delivery`).
        if len(payload) > settings.max_message_bytes and not settings.stores_oversize:
            raise MessageTooLargeError(len(payload), settings.max_message_bytes, "request")

    def _end_raised(self, delivery: Delivery, error: ServeGrpcError) -> None:
        error.request_id = delivery.call.fields.request_id
        delivery.end(Raised(error))
