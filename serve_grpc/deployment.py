"""How an app opts in: a decorator, one line for an existing app, or wrapped handles.

A deployment's class or function gets the public `record_replica_metadata` hook, which starts the
replica's server and publishes its address, and its constructor gets handles of ours. Nothing else
about the deployment changes: what comes out is an ordinary `serve.Deployment`.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, overload

from ray import serve
from ray.serve import handle as serve_handle
from ray.serve.deployment import Application, Deployment

from serve_grpc._serve.scanning import replace_objects
from serve_grpc.handle import DeploymentHandle, wrap
from serve_grpc.serialization import registered_serializers, restore_serializers

__all__ = ["deployment", "enable", "get_app_handle", "get_deployment_handle", "run", "wrap"]

HOOK = "record_replica_metadata"
_MARK = "__serve_grpc_enabled__"


@overload
def deployment(_func_or_class: Callable[..., Any], /) -> Deployment: ...
@overload
def deployment(**options: Any) -> Callable[[Callable[..., Any]], Deployment]: ...
def deployment(_func_or_class: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """As `ray.serve.deployment`, for a deployment whose replicas also serve gRPC.

    Takes all options of `ray.serve.deployment`, on a class, a function, or a class under
    `@serve.ingress`. Native handles among the constructor's arguments, in nested containers too,
    arrive as `serve_grpc.DeploymentHandle`.

    Returns:
        A `ray.serve.Deployment`.
    """
    if _func_or_class is None:
        return functools.partial(_decorate, options=options)
    return _decorate(_func_or_class, options=options)


def _decorate(func_or_class: Callable[..., Any], *, options: dict[str, Any]) -> Deployment:
    # Serve takes the name from what it decorates, and says what is wrong with anything else.
    if not (inspect.isclass(func_or_class) or inspect.isfunction(func_or_class)):
        result: Deployment = serve.deployment(func_or_class, **options)
        return result
    decorated: Deployment = serve.deployment(**options)(_enabled(func_or_class))
    return decorated


def enable(app: Application) -> Application:
    """The same application, with every deployment in its graph serving gRPC too.

    Usable on what `Deployment.bind()` returns, and as the `import_path` of a Serve config file.

    Raises:
        TypeError: `app` is not an `Application`.
    """
    if not isinstance(app, Application):
        raise TypeError(
            f"expected an Application, as Deployment.bind() returns, got {type(app).__name__}"
        )
    return _enable(app, {})


def _enable(app: Application, done: dict[int, Application]) -> Application:
    if id(app) in done:
        return done[id(app)]
    bound = app._bound_deployment
    args, kwargs = replace_objects(
        Application,
        (bound.init_args, bound.init_kwargs),
        lambda child: _enable(child, done),
    )
    enabled = bound.options(
        func_or_class=_enabled(bound.func_or_class),
        _init_args=args,
        _init_kwargs=kwargs,
        _internal=True,
    )
    result = done[id(app)] = Application(enabled)
    router = getattr(app, "_ingress_request_router", None)
    if router is not None:
        result._with_ingress_request_router(_enable(router, done))
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


def _enabled(func_or_class: Any) -> Any:
    if isinstance(func_or_class, str) or getattr(func_or_class, _MARK, False):
        return func_or_class
    if inspect.isclass(func_or_class):
        return _enabled_class(func_or_class)
    return _enabled_function(func_or_class)


def _enabled_class(cls: type) -> type:
    users_hook = getattr(cls, HOOK, None)
    users_init: Any = getattr(cls, "__init__")  # noqa: B009 (mypy: unsound on an instance)

    serializers = registered_serializers()

    async def record_replica_metadata(self: Any) -> dict[str, Any]:
        restore_serializers(serializers)
        users = await _users_metadata(users_hook, self)
        return {**users, **await _publish()}

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
    namespace = {
        "__init__": init,
        HOOK: record_replica_metadata,
        _MARK: True,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    return types.new_class(cls.__name__, (cls,), exec_body=lambda ns: ns.update(namespace))


def _enabled_function(function: types.FunctionType) -> types.FunctionType:
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
    users_hook = getattr(function, HOOK, None)

    serializers = registered_serializers()

    async def record_replica_metadata() -> dict[str, Any]:
        restore_serializers(serializers)
        users = await _users_metadata(users_hook)
        return {**users, **await _publish()}

    setattr(copy, HOOK, record_replica_metadata)
    setattr(copy, _MARK, True)
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


async def _publish() -> dict[str, Any]:
    # Imported here: only replicas need the server.
    from serve_grpc.replica.endpoint import publish_endpoint

    return await publish_endpoint()


def _with_our_handles(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    replaced: tuple[tuple[Any, ...], dict[str, Any]] = replace_objects(
        serve_handle.DeploymentHandle, (args, kwargs), wrap
    )
    return replaced
