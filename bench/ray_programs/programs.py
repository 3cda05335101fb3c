"""Runs Ray Serve's own benchmark programs over a transport of choice.

The programs are those of the installed Ray; nothing of them is copied. While one runs, the `serve`
and the deployments that it sees are ours, and two things are swapped:

- the decorator: for serve_grpc the application is opted in with `serve_grpc.enable`;
- the handle: the one that a constructor gets calls by value from then on.

The replicas ask for next to no CPU, and the command's last second of waiting for logs is left out.
Two faults of the programs are met here, both there with Ray alone: `handle_throughput` imports a
name that Ray's wheel does not have, and two programs fail when they print what they have measured.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from bench.on_serve.sides import CarrierWatch, actor_options, opted_in
from bench.plan.contenders import BY_REFERENCE, Contender, parse
from bench.plan.ray_programs import LATENCY

__all__ = ["app_of", "run_program"]

PACKAGE = "ray.serve._private.benchmarks"


def app_of(name: str, options: dict[str, Any], contender: str) -> Application:
    """The application that a program deploys, opted in if the contender is serve_grpc."""
    found: list[Application] = []

    def run(app: Application) -> None:
        found.append(app)
        raise _NotRun

    with contextlib.suppress(_NotRun):
        _run_main(name, options, contender, run)
    return opted_in(found[0], parse(contender).side)


def run_program(
    name: str, options: dict[str, Any], contender: str, handle: DeploymentHandle
) -> Any:
    """Run a program's `main` with these options.

    Args:
        handle: To what `app_of` gave for them, deployed already.

    Returns:
        What the program's application answered: a series of latencies in ms, or throughput, its
        deviation and a series of latencies.
    """
    answers: list[Any] = []
    try:
        _run_main(name, options, contender, lambda _: _Kept(handle, answers))
    except ValueError as error:
        # `mean, stddev = ...` of an answer that has a third part: the measurement is done.
        if not answers or "too many values to unpack" not in str(error):
            raise
    (answer,) = answers
    return answer


class _NotRun(Exception):
    """Ends a program where it would deploy its application."""


def _run_main(
    name: str, options: dict[str, Any], contender: str, run: Callable[[Application], Any]
) -> None:
    program = _imported(name)
    with contextlib.ExitStack() as swaps:
        for attribute, value in vars(program).copy().items():
            if isinstance(value, Deployment):
                swapped = _over(parse(contender), value)
                swaps.enter_context(patch.object(program, attribute, swapped))
        swaps.enter_context(patch.object(program, "serve", SimpleNamespace(run=run)))
        if name == LATENCY:
            swaps.enter_context(patch.object(program, "time"))
        program.main.callback(**options)


def _imported(name: str) -> ModuleType:
    common = importlib.import_module(f"{PACKAGE}.common")
    with patch.object(common, "Hello", common.Noop, create=True):
        return importlib.import_module(f"{PACKAGE}.{name}")


def _over(contender: Contender, deployment: Deployment) -> Deployment:
    """The deployment, with handles over the contender's transport."""
    is_by_reference = contender.transport == BY_REFERENCE
    program: Any = deployment.func_or_class

    class Swapped(program):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            handles = [
                arg.options(_by_reference=is_by_reference)
                if isinstance(arg, DeploymentHandle)
                else arg
                for arg in args
            ]
            self._watches = [
                CarrierWatch(handle) for handle in handles if isinstance(handle, DeploymentHandle)
            ]
            super().__init__(*handles, **kwargs)

        async def carrier(self) -> str:
            """What has carried the calls of the handles, see `Sample.carrier`."""
            return ",".join(sorted({watch.seen() for watch in self._watches}))

    return deployment.options(
        func_or_class=Swapped,
        ray_actor_options=actor_options(contender.carrier),
        graceful_shutdown_wait_loop_s=0.1,
    )


class _Kept:
    """A handle that keeps the answers: programs only print them."""

    def __init__(self, handle: DeploymentHandle, answers: list[Any]) -> None:
        self._handle = handle
        self._answers = answers

    def __getattr__(self, method: str) -> Any:
        def remote(**arguments: Any) -> Any:
            response = getattr(self._handle, method).remote(**arguments)

            def result() -> Any:
                self._answers.append(response.result())
                return self._answers[-1]

            return SimpleNamespace(result=result)

        return SimpleNamespace(remote=remote)
