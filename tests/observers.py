"""Libraries that observe gRPC, turned on as their users do, and the requests they then tell of.

What they patch stays patched, so each is turned on in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

__all__ = ["LIBRARIES", "turn_on"]


def _sentry() -> Callable[[], list[str]]:
    import sentry_sdk
    from sentry_sdk.integrations.grpc import GRPCIntegration

    seen: list[str] = []

    class Kept(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope: Any) -> None:
            seen.append(str(envelope.get_transaction_event()["transaction"]))

    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=Kept,
        traces_sample_rate=1.0,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[GRPCIntegration()],
    )
    return lambda: seen


def _opentelemetry() -> Callable[[], list[str]]:
    from opentelemetry.instrumentation import grpc
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    for instrumentor in (
        grpc.GrpcAioInstrumentorServer,
        grpc.GrpcAioInstrumentorClient,
        grpc.GrpcInstrumentorServer,
    ):
        instrumentor().instrument(tracer_provider=provider)
    return lambda: [span.name for span in kept.get_finished_spans()]


def _ddtrace() -> Callable[[], list[str]]:
    import ddtrace
    from ddtrace.trace import TraceFilter, tracer

    seen: list[str] = []

    class Kept(TraceFilter):
        def process_trace(self, trace: list[Any]) -> None:
            seen.extend(span.resource for span in trace)

    tracer.configure(trace_processors=[Kept()])
    ddtrace.patch(grpc=True)
    return lambda: seen


def _elastic() -> Callable[[], list[str]]:
    import elasticapm

    elasticapm.Client(
        service_name="tests",
        metrics_interval="0ms",
        central_config=False,
        cloud_provider="none",
        transport_class="tests.observers.ElasticTransport",
    )
    elasticapm.instrument()
    return lambda: ElasticTransport.seen


class ElasticTransport:
    """Where Elastic's client leaves its events."""

    seen: ClassVar[list[str]] = []
    start_stop_order = 0

    def __init__(self, **_: Any) -> None:
        """Nothing is sent anywhere."""

    def queue(self, event_type: str, data: dict[str, Any], flush: bool = False) -> None:
        if event_type == "transaction":
            self.seen.append(data["name"])

    def start_thread(self, pid: int | None = None) -> None:
        """No thread either."""

    def stop_thread(self) -> None:
        """Nor one to stop."""

    def close(self) -> None:
        """Nor anything to close."""


LIBRARIES = {
    "sentry": _sentry,
    "opentelemetry": _opentelemetry,
    "ddtrace": _ddtrace,
    "elastic": _elastic,
}


def turn_on(library: str) -> Callable[[], list[str]]:
    """For the rest of this process; gives the names of the requests it told of until now."""
    return LIBRARIES[library]()
