"""`DeploymentHandle`: Ray Serve's handle, whose by-value calls go over our sessions.

By reference, and wherever the deployment has no endpoint of ours, the call is Serve's own from
start to end. By value, `remote` serializes the arguments in the caller's thread and hands the call
to the deployment's router; whatever is wrong with this one call is told by its response.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from typing import Any, TypeVar

from ray.serve import handle as serve_handle

from serve_grpc._serve.handles import (
    DEFAULT,
    RUN_ROUTER_IN_SEPARATE_LOOP,
    get_random_string,
    shared_router,
)
from serve_grpc._serve.request_routers import mark
from serve_grpc._serve.requests import inside_ray_client_context
from serve_grpc.allow_list import check_call
from serve_grpc.arguments import (
    OPT_IN,
    Pickled,
    needs_resolving,
    refuse_streams,
    resolve_all,
    with_inputs,
)
from serve_grpc.caller.call import Call
from serve_grpc.caller.delivery import Delivery
from serve_grpc.caller.inputs import taken_out
from serve_grpc.caller.making import CallMaker
from serve_grpc.caller.misplaced import check_streams
from serve_grpc.caller.registry import UNREACHABLE, HandleFamily, known_router, router_of
from serve_grpc.caller.router import Router
from serve_grpc.config import LOGGER_NAME, settings
from serve_grpc.deadlines import deadline_after
from serve_grpc.errors import ServeGrpcError
from serve_grpc.handle_options import check_options, described
from serve_grpc.pinning import Binding, Pin, check_by_value
from serve_grpc.response import (
    ByValueResponse,
    ByValueResponseGenerator,
    DeploymentResponse,
    DeploymentResponseGenerator,
)

__all__ = ["UNREACHABLE", "DeploymentHandle", "wrap"]

logger = logging.getLogger(LOGGER_NAME)

T = TypeVar("T")


class DeploymentHandle(serve_handle.DeploymentHandle[T]):
    """A handle to a deployment; everything `ray.serve.handle.DeploymentHandle` documents holds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._timeout_s: float | None = kwargs.pop("timeout_s", None)
        self._idempotent: bool = kwargs.pop("idempotent", False)
        self._binding: Binding | None = kwargs.pop("binding", None)
        self._family: HandleFamily = kwargs.pop("family", None) or HandleFamily()
        self._serve_handle: Any = None  # Serve's handle, whose router this one is going to share
        super().__init__(*args, **kwargs)
        self._maker = CallMaker(
            self.deployment_name,
            self.app_name,
            self.handle_options,
            is_idempotent=self._idempotent,
            bound_to=self._binding and self._binding.replica_id,
        )
        self._by_name: dict[str, DeploymentHandle[T]] = {}
        self._data_router: Router | None = None
        self._family.add(self)

    def __repr__(self) -> str:
        router = None if self.handle_options._by_reference else self._known_router()
        ours = {"timeout_s": self._timeout_s, "idempotent": self._idempotent}
        return described(self, router, **ours, replica_id=self._maker.bound_to)

    def __reduce__(self) -> tuple[Any, ...]:
        # The family stays: it knows the routers and the warnings of this process.
        rebuild, (fields,) = super().__reduce__()
        ours: dict[str, Any] = {"timeout_s": self._timeout_s, "idempotent": self._idempotent}
        if self._binding is not None:
            ours["binding"] = self._binding
        return rebuild, ({**fields, **ours},)

    def __getattr__(self, name: str) -> DeploymentHandle[T]:
        # `handle.method.remote(...)` is a hot path; the handle of a method is kept. The table is
        # not there yet while `__init__` runs, and `self._by_name` would come back here.
        handles = self.__dict__.get("_by_name")
        if handles is None:
            raise AttributeError(name)
        handle = handles.get(name)
        if handle is None:
            handle = handles[name] = self.options(method_name=name)
        result: DeploymentHandle[T] = handle
        return result

    # ------------------------------------------------------------ options

    def options(
        self,
        *,
        method_name: str | DEFAULT = DEFAULT.VALUE,
        multiplexed_model_id: str | DEFAULT = DEFAULT.VALUE,
        session_id: str | DEFAULT = DEFAULT.VALUE,
        stream: bool | DEFAULT = DEFAULT.VALUE,
        _prefer_local_routing: bool | DEFAULT = DEFAULT.VALUE,
        _by_reference: bool | DEFAULT = DEFAULT.VALUE,
        request_serialization: str | DEFAULT = DEFAULT.VALUE,
        response_serialization: str | DEFAULT = DEFAULT.VALUE,
        timeout_s: float | DEFAULT | None = DEFAULT.VALUE,
        idempotent: bool | DEFAULT = DEFAULT.VALUE,
        replica_id: str | DEFAULT = DEFAULT.VALUE,
    ) -> DeploymentHandle[T]:
        """A copy of this handle with other options.

        Args:
            method_name: Method to call, `__call__` by default.
            multiplexed_model_id: Model that the request is for; replicas that hold it come first.
            session_id: Session of the request.
            stream: Whether the method is a generator.
            _prefer_local_routing: Whether replicas on this node come first.
            _by_reference: True for Ray Serve's own path, False for gRPC.
            request_serialization: Serializer of the arguments.
            response_serialization: Serializer of the result or items.
            timeout_s: Deadline of the whole call in seconds, waiting included; carried to the
                replica and to the calls it makes. None for none. Only for calls by value.
            idempotent: Whether a call that may have started may be repeated when its replica is
                lost. Only for calls by value.
            replica_id: The only replica that calls may go to, by the `replica_id` of a response.

        Raises:
            TypeError: A value of the wrong type.
            ValueError: An unknown serializer, a timeout that is not positive, an empty
                `replica_id`, or one for calls by reference.
        """
        # `locals()`, so that an option that Serve adds needs a name in the signature only.
        given = {
            name: value
            for name, value in locals().items()
            if name != "self" and value is not DEFAULT.VALUE
        }
        check_options(given)
        timeout_s = given.pop("timeout_s", self._timeout_s)
        idempotent = given.pop("idempotent", self._idempotent)
        binding = Binding(given.pop("replica_id")) if "replica_id" in given else self._binding
        # `_options` makes a handle of Serve's own class; what it knows goes into one of ours.
        serves: Any = self._options(**given)
        if binding is not None:
            check_by_value(serves.handle_options)
        copy = type(self)(
            serves.deployment_name,
            serves.app_name,
            init_options=serves.init_options,
            handle_options=serves.handle_options,
            _router=serves._router,
            _create_router=serves._create_router,
            _request_counter=serves.request_counter,
            _handle_id=serves.handle_id,
            timeout_s=timeout_s,
            idempotent=idempotent,
            binding=binding,
            family=self._family,
        )
        # Not looked up again: `handle.options(...).remote()` is a common way to call.
        copy._data_router = self._data_router
        # Not with the first call: until then Serve's router would look up every replica's actor.
        is_by_value = not copy.handle_options._by_reference
        if is_by_value and copy.is_initialized and copy._data_router is None:
            copy._find_router()
        return copy

    def _init(self, **kwargs: Any) -> None:
        if self._serve_handle is not None and not self.is_initialized:
            if not kwargs and (router := shared_router(self._serve_handle)) is not None:
                self._router, self.init_options = router, self._serve_handle.init_options
                return
            # A router of its own; the controller tells the reports of routers apart by handle.
            self._family.owns_router = True
            self.handle_id = get_random_string()
            self.request_counter = self._create_request_counter(
                self.app_name, self.deployment_name, self.handle_id
            )
        # Serve refuses a router on the caller's loop where there is no loop, as in a driver
        # thread; such a caller gets the router thread that Serve uses by default.
        if not RUN_ROUTER_IN_SEPARATE_LOOP and asyncio._get_running_loop() is None:
            kwargs.setdefault("_run_router_in_separate_loop", True)
        super()._init(**kwargs)

    # ------------------------------------------------------------ calls

    def remote(
        self, *args: Any, **kwargs: Any
    ) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
        """Call the deployment.

        Returns:
            A response to await or to wait for, or with `stream=True` a generator of items.
            Errors of the call, wrong arguments among them, are raised there.

        Raises:
            RuntimeError, ServeGrpcError: As of `Binding.check_call`, if it is bound to a replica.
            TypeError, ServeGrpcError: A stream cannot be an argument of this call, as they say.
        """
        if self.handle_options._by_reference:
            refuse_streams(args, kwargs)
            if self._timeout_s is not None or self._idempotent:
                self._say_once("`timeout_s` and `idempotent` have no effect by reference")
            return self._call_over_serve(args, kwargs)
        router = self._data_router or self._find_router()
        if self._binding is not None:
            self._binding.check_call(router)
        deadline_s = deadline_after(self._timeout_s)
        if router is None:
            return self._fall_back(router, args, kwargs)
        feed = router.feed if self._binding is None else router.line.bound.feed
        inputs = None
        if is_waiting := needs_resolving(args, kwargs):
            args, kwargs, inputs = with_inputs(router, args, kwargs, self._maker.request_serializer)
            is_waiting = inputs is None or needs_resolving(args, kwargs)
        elif feed.is_serve_routed:
            check_streams(args, kwargs)
        delivery = self._maker.new_delivery(router, deadline_s, inputs)
        call = delivery.call
        has_list = feed.serializers is not None or settings.serializers is not None
        if has_list and self._maker.is_refused(delivery, feed.serializers):
            return self._response(call)
        if feed.is_serve_routed or not feed.is_ready:
            # It may be made later, on the router's loop; Serve asks there for the request that the
            # call belongs to (`get_request_metadata` in `ray/serve/_private/default_impl.py`).
            in_context = contextvars.copy_context().run
            make = functools.partial(in_context, self._fall_back, router, args, kwargs)
            delivery.make_serve_call = make
        if inputs is not None:
            args, kwargs, _ = taken_out(args, kwargs, self._maker.request_serializer.name)
        if feed.is_serve_routed or is_waiting:
            # Serve's own router resolves them itself, if it is still the one that assigns the call.
            arguments = functools.partial(self._resolve, router, delivery, args, kwargs)
            router.mailbox.run(router.submit, delivery, arguments)
        # In this thread: the caller may change its values as soon as `remote` has returned.
        elif self._maker.serialize(delivery, args, kwargs, router.memory):
            router.mailbox.run(router.submit, delivery)
        return self._response(call)

    def _response(self, call: Call) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
        if self.handle_options.stream:
            return ByValueResponseGenerator(call)
        return ByValueResponse(call)

    async def _resolve(
        self, router: Router, delivery: Delivery, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Wait for responses and ObjectRefs among the arguments; on the router's loop."""
        args, kwargs = await resolve_all(args, kwargs, self._maker.request_serializer)
        if all(isinstance(value, Pickled) for value in (*args, *kwargs.values())):
            # It only copies bytes, so a thread would cost more.
            self._maker.serialize(delivery, args, kwargs, router.memory)
        else:
            await self._maker.serialize_in_thread(delivery, args, kwargs, router.memory)

    # ------------------------------------------------------------ calls to chosen replicas

    def pin(self) -> Pin[DeploymentHandle[T]]:
        """For `async with`: a copy of this handle whose calls all go to one replica; see `Pin`."""
        return Pin(self)

    def dispatch(
        self, selection: serve_handle.ReplicaSelection, *args: Any, **kwargs: Any
    ) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
        """As Serve's: call the replica that `choose_replica` of this deployment's handle gave."""
        if self.handle_options._by_reference:
            refuse_streams(args, kwargs)
        elif needs_resolving(args, kwargs) and (router := self._data_router or self._find_router()):
            args, kwargs, _ = with_inputs(router, args, kwargs, self._maker.request_serializer)
        return self._serve_response(*self._dispatch(selection, args, kwargs))

    def broadcast(
        self, method_name: str, *args: Any, **kwargs: Any
    ) -> serve_handle.DeploymentBroadcastResponse:
        """As Serve's: call a method of every replica, full or not."""
        refuse_streams(args, kwargs, "it is read once, and a broadcast is many calls")
        if self.handle_options._by_reference or self._find_router() is None:
            return super().broadcast(method_name, *args, **kwargs)
        handle = self.options(method_name=method_name, stream=False)
        router, metadata = handle._init_router_and_get_metadata()
        self.request_counter.inc(tags={"route": metadata.route, "application": metadata.app_name})
        coroutine = router.broadcast(metadata, *args, **kwargs)
        return serve_handle.DeploymentBroadcastResponse(coroutine, router.event_loop)

    # ------------------------------------------------------------ Serve's own path

    def _known_router(self) -> Router | None:
        """The router of calls by value, if there is one; a copy may have made it."""
        if self._data_router is not None or self._router is None:
            return self._data_router
        return known_router(self._router)

    def _find_router(self) -> Router | None:
        if inside_ray_client_context():
            return None
        self._data_router = router_of(self._init_router(), self.request_counter)
        return self._data_router

    def _call_over_serve(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
        return self._serve_response(*self._remote(args, kwargs))

    def _serve_response(
        self, future: Any, metadata: Any
    ) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
        kind = DeploymentResponseGenerator if metadata.is_streaming else DeploymentResponse
        return kind(
            future,
            metadata,
            _is_router_running_in_separate_loop=self._is_router_running_in_separate_loop(),
        )

    def _init_router_and_get_metadata(self) -> tuple[Any, Any]:
        # Where Serve's own methods (`choose_replica`, `_remote`) make a request.
        if self._binding is not None:
            self._binding.refuse_serve()
        router, metadata = super()._init_router_and_get_metadata()
        if metadata._by_reference:
            return router, metadata
        names = self._maker.request_serializer.name, self._maker.response_serializer.name
        check_call(*names, process=settings.serializers)
        if (self._data_router or self._find_router()) is None:
            return router, metadata
        deadline_s = deadline_after(self._timeout_s)
        return router, mark(metadata, deadline_s=deadline_s, is_idempotent=self._idempotent)

    def _fall_back(
        self, router: Router | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
        reason = router.feed.fallback_reason if router is not None else UNREACHABLE
        if reason is not None:  # else only the choice of the replica is Serve's
            refuse_streams(args, kwargs, f"the deployment {reason}{OPT_IN}", ServeGrpcError)
            self._say_once(f"calls by value use Ray Serve's own transport, because it {reason}")
        return self._call_over_serve(args, kwargs)

    def _say_once(self, text: str) -> None:
        if text not in self._family.said:
            self._family.said.add(text)
            logger.warning("Handle of deployment %r: %s.", self.deployment_name, text)

    def shutdown(self) -> None:
        """Later calls by value, of all copies of this handle, fail with `ServeGrpcError`.

        Handles got in another way are not disturbed; `get_app_handle` gives another one then.
        """
        self._close_router()
        if self._family.owns_router:
            super().shutdown()

    async def shutdown_async(self) -> None:
        """As `shutdown`, without blocking the loop."""
        self._close_router()
        if self._family.owns_router:
            await super().shutdown_async()

    def _close_router(self) -> None:
        router = self._known_router()
        if router is not None:
            self._family.shut_down(router)


def wrap(handle: serve_handle.DeploymentHandle[T]) -> DeploymentHandle[T]:
    """A handle of ours for the same deployment, with the same options and router.

    Raises:
        TypeError: `handle` is not a `ray.serve.handle.DeploymentHandle`.
    """
    if isinstance(handle, DeploymentHandle):
        return handle
    if not isinstance(handle, serve_handle.DeploymentHandle):
        raise TypeError(f"expected a Ray Serve DeploymentHandle, got {type(handle).__name__}")
    wrapped: DeploymentHandle[T] = DeploymentHandle(
        handle.deployment_name,
        handle.app_name,
        init_options=handle.init_options,
        handle_options=handle.handle_options,
        _router=handle._router,
        _create_router=handle._create_router,
        _request_counter=handle.request_counter,
        _handle_id=handle.handle_id,
    )
    wrapped._serve_handle = handle
    wrapped._family.owns_router = False
    return wrapped
