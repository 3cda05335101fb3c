"""How an app opts in: a decorator, one line for an existing app, or wrapped handles.

The deployment's replicas start our server and publish its address, and handles among the
constructor's arguments become ours. Nothing else changes: what comes out is a `serve.Deployment` of
the user's own class or function, which knows nothing of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, overload

from ray import serve
from ray.serve import handle as serve_handle
from ray.serve.deployment import Application, Deployment

from serve_grpc._serve.definitions import add_metadata, on_load
from serve_grpc._serve.scanning import replace_objects
from serve_grpc.allow_list import AllowList, allow_list, narrowed
from serve_grpc.handle import DeploymentHandle, wrap
from serve_grpc.serialization import Serializer, registered_serializers, restore_serializers

__all__ = ["deployment", "enable", "get_app_handle", "get_deployment_handle", "run", "wrap"]


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

    Takes all options of `ray.serve.deployment`, on a class, a function, a class under
    `@serve.ingress`, or a deployment, such as `@serve.deployment` makes, whose options they then
    replace. The class or function stays as it is. Handles of Serve's among the constructor's
    arguments, in nested containers too, arrive as `serve_grpc.DeploymentHandle`.

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
    if isinstance(func_or_class, Application):
        raise TypeError("expected a class or function, got an Application: see serve_grpc.enable")
    if not isinstance(func_or_class, Deployment):
        func_or_class, options = serve.deployment(**options)(func_or_class), {}
    # Internal: not as if the user had chosen options.
    return _opted_in(func_or_class, allowed, **options or {"_internal": True})


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
    # By identity, as Serve's `build_app` counts them (its `IDDict`): a child that two deployments
    # share stays one, and the ids stay taken, for `app` holds the whole graph.
    if id(app) in done:
        return done[id(app)]
    bound = app._bound_deployment
    args, kwargs = replace_objects(
        Application,
        (bound.init_args, bound.init_kwargs),
        lambda child: _enable(child, done, allowed),
    )
    enabled = _opted_in(bound, allowed, _init_args=args, _init_kwargs=kwargs, _internal=True)
    result = done[id(app)] = Application(enabled)
    router = getattr(app, "_ingress_request_router", None)
    if router is not None:
        result._with_ingress_request_router(_enable(router, done, allowed))
    return result


def run(target: Application, **options: Any) -> DeploymentHandle[Any]:
    """As `ray.serve.run`; returns a handle of ours, the one that `get_app_handle` gives too."""
    return _handle_beside(serve.run(target, **options))


def get_app_handle(name: str) -> DeploymentHandle[Any]:
    """As `ray.serve.get_app_handle`; returns a handle of ours, the same each time Serve gives the
    same one: it keeps `RAY_SERVE_MAX_CACHED_HANDLES` of them in a process."""
    return _handle_beside(serve.get_app_handle(name))


def get_deployment_handle(
    deployment_name: str, app_name: str | None = None, **options: Any
) -> DeploymentHandle[Any]:
    """As `ray.serve.get_deployment_handle`; returns a handle of ours, the same each time, as
    `get_app_handle` does."""
    return _handle_beside(serve.get_deployment_handle(deployment_name, app_name, **options))


def _handle_beside(serves: serve_handle.DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    # Kept in Serve's handle, so it lives as long and no longer. A handle with a router of its own
    # is bound to one event loop, and one that was shut down is of no use.
    kept: DeploymentHandle[Any] | None = vars(serves).get(_BESIDE)
    if kept is None or kept._family.owns_router or kept._family.is_shut_down:
        kept = vars(serves)[_BESIDE] = wrap(serves)
    return kept


_BESIDE = "_serve_grpc_handle"


# ------------------------------------------------------------ the deployment


class _OptedIn(Deployment):
    """A deployment whose replicas serve gRPC, as do those of all that is made of it."""

    serializers: AllowList = None

    @functools.wraps(Deployment.options)
    def options(self, *args: Any, **options: Any) -> Deployment:
        return _copy(self, self.serializers, *args, **options)


def _opted_in(deployment: Deployment, allowed: AllowList, **options: Any) -> Deployment:
    """The same deployment with these options, serving gRPC; it takes what is in both lists."""
    before = deployment.serializers if isinstance(deployment, _OptedIn) else None
    both = narrowed(before, allowed)
    if both is not None and not both:
        raise ValueError(f"{deployment.name} takes none of these serializers: {allowed}")
    return _copy(deployment, both, **options)


def _copy(deployment: Deployment, allowed: AllowList, *args: Any, **options: Any) -> Deployment:
    made = Deployment.options(deployment, *args, **options)
    if not options.keys().isdisjoint(("_init_args", "_init_kwargs")):  # with handles among them?
        given = made.init_args, made.init_kwargs
        ours = replace_objects((serve_handle.DeploymentHandle, Application), given, _ours)
        if ours is not given:
            init_args, init_kwargs = ours
            made = Deployment.options(
                made, _init_args=init_args, _init_kwargs=init_kwargs, _internal=True
            )
    # `Deployment.options` makes a plain `Deployment`, whatever it is called on.
    copy = _OptedIn(
        made.name,
        made._deployment_config,
        made._replica_config,
        version=made.version,
        _internal=True,
    )
    copy.serializers = allowed
    if not isinstance(made.func_or_class, str):  # a Java class
        on_load(copy, functools.partial(_on_loaded, allowed, registered_serializers()))
    return copy


def _ours(found: Any) -> Any:
    # An application is a part of the graph, and becomes a handle when Serve builds it.
    return found if isinstance(found, Application) else wrap(found)


def _on_loaded(allowed: AllowList, serializers: dict[str, Serializer], code: Any) -> None:
    restore_serializers(serializers)  # before the constructor, which may make calls
    add_metadata(code, functools.partial(_publish, allowed))


async def _publish(allowed: AllowList) -> dict[str, Any]:
    # Imported here: only replicas need the server.
    from serve_grpc.replica.endpoint import publish_endpoint

    return await publish_endpoint(allowed)
