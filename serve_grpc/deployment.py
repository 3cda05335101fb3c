"""How an app opts in: a decorator, one line for an existing app, or wrapped handles.

A deployment's class or function gets the public `record_replica_metadata` hook, which starts the
replica's server and publishes its address, and its constructor gets handles of ours. Nothing else
about the deployment changes: what comes out is an ordinary `serve.Deployment`.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any, overload

from ray import serve
from ray.serve import handle as serve_handle
from ray.serve.deployment import Application, Deployment

from serve_grpc._serve.scanning import replace_objects
from serve_grpc.allow_list import AllowList, allow_list, narrowed
from serve_grpc.handle import DeploymentHandle, wrap
from serve_grpc.serialization import registered_serializers, restore_serializers

__all__ = ["deployment", "enable", "get_app_handle", "get_deployment_handle", "run", "wrap"]

HOOK = "record_replica_metadata"
_MARK = "__serve_grpc_serializers__"
"""On a class or function that serves gRPC: its list of serializers."""
_USERS_HOOK = "__serve_grpc_users_hook__"


@overload
def deployment(_func_or_class: Callable[..., Any], /) -> Deployment: ...
@overload
def deployment(**options: Any) -> Callable[[Callable[..., Any]], Deployment]: ...
def deployment(
    _func_or_class: Callable[..., Any] | None = None,
    /,
    *,
    serializers: Iterable[str] | None = None,
    **options: Any,
) -> Any:
    """As `ray.serve.deployment`, for a deployment whose replicas also serve gRPC.

    Takes all options of `ray.serve.deployment`, on a class, a function, or a class under
    `@serve.ingress`. Native handles among the constructor's arguments, in nested containers too,
    arrive as `serve_grpc.DeploymentHandle`.

    Args:
        serializers: Names of the only serializers that its replicas take and answer with over
            gRPC, such as `("msgpack", "orjson")`; None for all. Without "pickle" and "cloudpickle"
            nothing that comes to a replica, or from it, is unpickled.
        options: As of `ray.serve.deployment`.

    Returns:
        A `ray.serve.Deployment`.

    Raises:
        TypeError: `serializers` is not a collection of strings.
        ValueError: It is empty, or names no registered serializer.
    """
    allowed = allow_list(serializers)
    if _func_or_class is None:
        return functools.partial(_decorate, allowed=allowed, options=options)
    return _decorate(_func_or_class, allowed=allowed, options=options)


def _decorate(
    func_or_class: Callable[..., Any], *, allowed: AllowList, options: dict[str, Any]
) -> Deployment:
    # Serve takes the name from what it decorates, and says what is wrong with anything else.
    if not (inspect.isclass(func_or_class) or inspect.isfunction(func_or_class)):
        result: Deployment = serve.deployment(func_or_class, **options)
        return result
    decorated: Deployment = serve.deployment(**options)(_enabled(func_or_class, allowed))
    return decorated


def enable(app: Application, *, serializers: Iterable[str] | None = None) -> Application:
    """The same application, with every deployment in its graph serving gRPC too.

    Usable on what `Deployment.bind()` returns, and as the `import_path` of a Serve config file.

    Args:
        app: The application.
        serializers: As of `deployment`, for each of them; one that allows only some of its own
            takes those that are in both lists.

    Raises:
        TypeError: `app` is not an `Application`, or `serializers` no collection of strings.
        ValueError: `serializers` is empty, names no registered serializer, or leaves a deployment
            without any.
    """
    if not isinstance(app, Application):
        raise TypeError(
            f"expected an Application, as Deployment.bind() returns, got {type(app).__name__}"
        )
    return _enable(app, {}, allow_list(serializers))


def _enable(app: Application, done: dict[int, Application], allowed: AllowList) -> Application:
    if id(app) in done:
        return done[id(app)]
    bound = app._bound_deployment
    args, kwargs = replace_objects(
        Application,
        (bound.init_args, bound.init_kwargs),
        lambda child: _enable(child, done, allowed),
    )
    enabled = bound.options(
        func_or_class=_enabled(bound.func_or_class, allowed),
        _init_args=args,
        _init_kwargs=kwargs,
        _internal=True,
    )
    result = done[id(app)] = Application(enabled)
    router = getattr(app, "_ingress_request_router", None)
    if router is not None:
        result._with_ingress_request_router(_enable(router, done, allowed))
    return result


def run(target: Application, **options: Any) -> DeploymentHandle[Any]:
    """As `ray.serve.run`; returns a handle of ours."""
    return wrap(serve.run(target, **options))


def get_app_handle(name: str) -> DeploymentHandle[Any]:
    """As `ray.serve.get_app_handle`; returns a handle of ours."""
    return wrap(serve.get_app_handle(name))


def get_deployment_handle(
    deployment_name: str, app_name: str | None = None, **options: Any
) -> DeploymentHandle[Any]:
    """As `ray.serve.get_deployment_handle`; returns a handle of ours."""
    return wrap(serve.get_deployment_handle(deployment_name, app_name, **options))


# ------------------------------------------------------------ the deployment's code


def _enabled(func_or_class: Any, allowed: AllowList) -> Any:
    if isinstance(func_or_class, str):  # a Java class
        return func_or_class
    is_class = inspect.isclass(func_or_class)
    if not hasattr(func_or_class, _MARK):
        return (_enabled_class if is_class else _enabled_function)(func_or_class, allowed)
    before: AllowList = getattr(func_or_class, _MARK)
    both = narrowed(before, allowed)
    if both == before:
        return func_or_class
    if not both:
        raise ValueError(f"{func_or_class.__name__} takes none of these serializers: {allowed}")
    if is_class:
        return _subclass(func_or_class, {_MARK: both})
    return _enabled_function(func_or_class, both)


def _subclass(cls: type, attributes: dict[str, Any]) -> type:
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        **attributes,
    }
    return types.new_class(cls.__name__, (cls,), exec_body=lambda ns: ns.update(namespace))


def _enabled_class(cls: type, allowed: AllowList) -> type:
    users_hook = getattr(cls, HOOK, None)
    users_init: Any = getattr(cls, "__init__")  # noqa: B009 (mypy: unsound on an instance)

    serializers = registered_serializers()

    async def record_replica_metadata(self: Any) -> dict[str, Any]:
        restore_serializers(serializers)
        users = await _users_metadata(users_hook, self)
        return {**users, **await _publish(getattr(self, _MARK))}

    if inspect.iscoroutinefunction(users_init):  # a class under @serve.ingress, say

        async def async_init(self: Any, *args: Any, **kwargs: Any) -> None:
            restore_serializers(serializers)  # the constructor may make calls
            args, kwargs = _with_our_handles(args, kwargs)
            await users_init(self, *args, **kwargs)

        init: Any = async_init
    else:

        def sync_init(self: Any, *args: Any, **kwargs: Any) -> None:
            restore_serializers(serializers)
            args, kwargs = _with_our_handles(args, kwargs)
            users_init(self, *args, **kwargs)

        init = sync_init

    functools.update_wrapper(init, users_init)
    return _subclass(cls, {"__init__": init, HOOK: record_replica_metadata, _MARK: allowed})


def _enabled_function(function: types.FunctionType, allowed: AllowList) -> types.FunctionType:
    # A copy, so that the user's own function keeps its attributes.
    copy = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    functools.update_wrapper(copy, function)
    del copy.__wrapped__  # type: ignore[attr-defined]
    copy.__kwdefaults__ = function.__kwdefaults__
    # One that serves gRPC already has a hook of ours, around the user's.
    users_hook = getattr(function, _USERS_HOOK, getattr(function, HOOK, None))

    serializers = registered_serializers()

    async def record_replica_metadata() -> dict[str, Any]:
        restore_serializers(serializers)
        users = await _users_metadata(users_hook)
        return {**users, **await _publish(allowed)}

    setattr(copy, HOOK, record_replica_metadata)
    setattr(copy, _USERS_HOOK, users_hook)
    setattr(copy, _MARK, allowed)
    return copy


async def _users_metadata(hook: Callable[..., Any] | None, *self_if_method: Any) -> dict[str, Any]:
    if hook is None:
        return {}
    metadata = hook(*self_if_method)
    if inspect.isawaitable(metadata):
        metadata = await metadata
    if metadata is not None and not isinstance(metadata, dict):
        raise TypeError(f"{HOOK} must return a dict, got {type(metadata).__name__}.")
    return metadata or {}


async def _publish(allowed: AllowList) -> dict[str, Any]:
    # Imported here: only replicas need the server.
    from serve_grpc.replica.endpoint import publish_endpoint

    return await publish_endpoint(allowed)


def _with_our_handles(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    replaced: tuple[tuple[Any, ...], dict[str, Any]] = replace_objects(
        serve_handle.DeploymentHandle, (args, kwargs), wrap
    )
    return replaced
