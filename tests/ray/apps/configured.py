"""What a process is set up to do. Neither this file nor `Probe` knows of serve_grpc."""

from __future__ import annotations

import asyncio
import copyreg
import gc
import logging
import os
import signal
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from typing import Any

from ray.serve._private import constants

__all__ = ["Probe", "facts", "patches", "things_of_ray"]

LOGGERS = ("", "ray", "ray.serve", "grpc", "asyncio", "uvicorn")
PLAIN = (str, int, float, bool, list, tuple, dict, set, frozenset, type(None))


def facts() -> dict[str, Any]:
    """Environment, Serve's constants, logging, and whatever is one for the whole process."""
    return {
        "environ": dict(os.environ),
        "constants": {
            name: repr(sorted(value) if isinstance(value, (set, frozenset)) else value)
            for name, value in vars(constants).items()
            if name.isupper() and isinstance(value, PLAIN)
        },
        "logging": {name: _logger(logging.getLogger(name)) for name in LOGGERS},
        "process": {
            "signals": [
                getattr(handler, "__qualname__", str(handler))
                for handler in map(signal.getsignal, sorted(signal.Signals))
            ],
            "hooks": [
                hook.__qualname__
                for hook in (sys.excepthook, sys.unraisablehook, threading.excepthook)
            ],
            "policy": type(asyncio.get_event_loop_policy()).__name__,
            "warnings": [repr(entry) for entry in warnings.filters],
            "finders": [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path],
            "pickled": sorted(kind.__qualname__ for kind in copyreg.dispatch_table),
            "limits": [sys.getrecursionlimit(), sys.getswitchinterval(), *gc.get_threshold()],
        },
    }


def _logger(logger: logging.Logger) -> list[Any]:
    handlers = [
        [type(h).__name__, h.level, type(h.formatter).__name__, *(_filter(f) for f in h.filters)]
        for h in logger.handlers
    ]
    filters = [_filter(one) for one in logger.filters]
    return [logger.level, logger.propagate, logger.disabled, filters, handlers]


def _filter(one: Any) -> str:
    return getattr(one, "__name__", type(one).__name__)


def things_of_ray() -> Iterator[tuple[str, Any]]:
    """Every function and class of Ray's loaded modules, and what stands in the classes."""
    for module_name, module in sorted(sys.modules.items()):
        if module_name == "ray" or module_name.startswith("ray."):
            for name, thing in list(vars(module).items()):
                if isinstance(thing, (types.FunctionType, type)):
                    yield f"{module_name}.{name}", thing
                if isinstance(thing, type) and thing.__module__ == module_name:
                    for member, value in vars(thing).items():
                        if callable(value) or isinstance(value, (property, staticmethod)):
                            yield f"{module_name}.{name}.{member}", value


def patches() -> list[str]:
    """What in Ray's modules and classes comes from serve_grpc."""
    return [
        name
        for name, thing in things_of_ray()
        if str(getattr(thing, "__module__", "")).split(".")[0] == "serve_grpc"
    ]


class Probe:
    """Args: `inner`, another one."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    async def __call__(self) -> int:
        return 1 if self.inner is None else 1 + await self.inner.remote()

    async def facts(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        return {
            **facts(),
            "loop": [type(loop).__qualname__, repr(loop.get_exception_handler())],
            "patches": patches(),
            "has_serve_grpc": "serve_grpc" in sys.modules,
        }
