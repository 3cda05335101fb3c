"""Deployments whose replicas trace, with an exporter that keeps the spans for the test to ask for.

Replicas get `TRACING` as environment variables; Serve imports `exporter` in each of them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

from serve_grpc.errors import RequestStreamError
from tests.ray.compat.behaviours import BY_REFERENCE, OURS, over

__all__ = ["TRACING", "Front", "Leaf", "exporter", "finished_spans", "trace_in_ray"]

TRACING = {
    "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "tests.ray.apps.traced:exporter",
    "RAY_SERVE_TRACING_SAMPLING_RATIO": "1.0",
}

_exporters: list[Any] = []


def exporter() -> list[Any]:
    """Serve's hook: the span processors of this process."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    _exporters.append(InMemorySpanExporter())
    return [SimpleSpanProcessor(_exporters[-1])]


def trace_in_ray() -> None:
    """Ray's hook, `ray.init(_tracing_startup_hook=...)`: tracing in this process."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())


def finished_spans() -> list[dict[str, Any]]:
    """The spans that ended in this process."""
    return [
        {
            "name": span.name,
            "kind": span.kind.name,
            "trace": f"{span.context.trace_id:032x}",
            "id": f"{span.context.span_id:016x}",
            "parent": f"{span.parent.span_id:016x}" if span.parent else None,
            "attributes": {key: str(value) for key, value in span.attributes.items()},
            "lasted_s": (span.end_time - span.start_time) / 1e9,
            "errors": [event.attributes["exception.type"] for event in span.events],
        }
        for exporter in _exporters
        for span in exporter.get_finished_spans()
    ]


class _Traced:
    def __init__(self) -> None:
        self.running: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def spans(self) -> list[dict[str, Any]]:
        from tests.ray.apps import traced

        return traced.finished_spans()


class Leaf(_Traced):
    """What is called."""

    async def __call__(self) -> Any:
        return self._seen()

    def in_thread(self) -> Any:
        from opentelemetry import trace

        with trace.get_tracer("user").start_as_current_span("user's own"):
            return self._seen()

    async def items(self) -> AsyncIterator[Any]:
        yield self._seen()
        yield self._seen()

    def items_in_thread(self) -> Iterator[Any]:
        yield self._seen()
        yield self._seen()

    async def read(self, numbers: Any) -> list[int]:
        return [number async for number in numbers]

    def read_in_thread(self, numbers: Any) -> list[int]:
        return list(numbers)

    async def echo(self, numbers: Any) -> AsyncIterator[int]:
        async for number in numbers:
            yield number

    async def read_what_comes(self, numbers: Any) -> list[int]:
        """Up to an error, too."""
        taken: list[int] = []
        try:
            async for number in numbers:
                taken.append(number)
        except RequestStreamError:
            pass
        return taken

    async def log_file(self) -> str:
        """Where Serve's log of this replica is."""
        import logging

        handlers = logging.getLogger("ray.serve").handlers
        targets = [getattr(handler, "target", handler) for handler in handlers]
        return next(str(t.baseFilename) for t in targets if hasattr(t, "baseFilename"))

    async def fail(self) -> None:
        raise KeyError("missing")

    async def forever(self, key: str) -> None:
        self.running[key].set()
        await asyncio.Event().wait()

    async def wait_running(self, key: str) -> None:
        await self.running[key].wait()

    async def grpc_metadata(self) -> Any:
        """Of the gRPC request that came in through an ingress."""
        from ray.serve.context import _get_serve_request_context

        context = _get_serve_request_context().grpc_context
        return context and dict(context.invocation_metadata())

    def _seen(self) -> Any:
        """The trace context of the request, as `ray.serve.context` has it."""
        from ray.serve.context import _get_serve_request_context

        return _get_serve_request_context()._ray_trace_ctx


class Front(_Traced):
    """Makes a call over the transport of its name, in a trace of its own.

    Args: `leaf`, a handle.
    """

    def __init__(self, leaf: Any) -> None:
        super().__init__()
        self.leaf = leaf

    async def call(self, transport: str, method: str = "__call__", *args: Any) -> Any:
        handle = over(transport, self.leaf).options(method_name=method)
        return self._trace(), await handle.remote(*args)

    async def stream(self, transport: str, method: str) -> Any:
        handle = over(transport, self.leaf).options(method_name=method, stream=True)
        return self._trace(), [item async for item in handle.remote()]

    async def upload(self, method: str, pause_s: float, end: str = "") -> Any:
        """A stream of three numbers as an argument, each of which is made in a span of its own.

        Args:
            method: Of the leaf.
            pause_s: Before each number.
            end: "fails" for a generator that does, "cancels" for a call that is given up.

        Returns:
            The trace, the id of the request, and what came of it.
        """
        from opentelemetry import trace

        async def numbers() -> AsyncIterator[int]:
            for number in range(3):
                with trace.get_tracer("user").start_as_current_span("made"):
                    await asyncio.sleep(pause_s)
                yield number
            if end == "fails":
                raise KeyError("missing")
            if end == "cancels":
                response.cancel()
                yield 3

        leaf = over(OURS, self.leaf).options(method_name=method, stream=method == "echo")
        response: Any = leaf.remote(numbers())
        try:
            got = [n async for n in response] if method == "echo" else await response
        except (Exception, asyncio.CancelledError) as error:
            got = type(error).__name__
        return self._trace(), response.request_id, got

    async def fail(self, transport: str) -> Any:
        try:
            await over(transport, self.leaf).fail.remote()
        except KeyError:
            return self._trace(), None
        raise AssertionError("no error")

    async def cancel(self, transport: str, key: str) -> Any:
        response = over(transport, self.leaf).forever.remote(key)
        await over(BY_REFERENCE, self.leaf).wait_running.remote(key)
        response.cancel()
        return self._trace(), None

    def in_thread(self, transport: str) -> Any:
        return self._trace(), over(transport, self.leaf).remote().result(timeout_s=20)

    def _trace(self) -> str:
        from opentelemetry import trace

        return f"{trace.get_current_span().get_span_context().trace_id:032x}"
