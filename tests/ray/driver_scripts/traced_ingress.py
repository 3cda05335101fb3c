"""A traced request through Serve's gRPC proxy, and a call of a driver under Ray's own tracing.

Prints, as JSON, what came of it over each transport.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import grpc
import ray
from opentelemetry import baggage, context, trace
from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.generated.serve_pb2 import UserDefinedMessage, UserDefinedResponse
from ray.serve.generated.serve_pb2_grpc import UserDefinedServiceStub

import serve_grpc
from tests.ray.apps.traced import Leaf
from tests.ray.compat.behaviours import TRANSPORTS, over
from tests.ray.instance import free_port
from tests.ray.waiting import eventually


class Ingress:
    """Asks Leaf over the transport that the message names."""

    def __init__(self, leaf: Any) -> None:
        self.leaf = leaf

    async def Method1(self, message: UserDefinedMessage) -> UserDefinedResponse:
        from tests.ray.compat.behaviours import over

        metadata = await over(message.name, self.leaf).grpc_metadata.remote()
        return UserDefinedResponse(greeting=json.dumps(metadata))

    async def spans(self) -> Any:
        from tests.ray.apps import traced

        return traced.finished_spans()


def main() -> None:
    port = free_port()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _tracing_startup_hook="tests.ray.apps.traced:trace_in_ray",
    )
    try:
        add_servicer = "ray.serve.generated.serve_pb2_grpc.add_UserDefinedServiceServicer_to_server"
        serve.start(
            http_options={"host": "127.0.0.1", "port": free_port()},
            grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[add_servicer]),
        )
        options = {
            "max_ongoing_requests": 20,
            "ray_actor_options": {"num_cpus": 0.01},
        }
        enabled = serve_grpc.deployment(**options)
        ingress = serve_grpc.run(enabled(Ingress).bind(enabled(Leaf).bind()), name="ingress")
        leaf = serve_grpc.get_deployment_handle("Leaf", "ingress")
        print(json.dumps({name: _try(name, port, ingress, leaf) for name in TRANSPORTS}))
    finally:
        ray.shutdown()


def _try(transport: str, port: int, ingress: Any, leaf: Any) -> dict[str, Any]:
    trace_id = secrets.token_hex(16)
    metadata = (
        ("application", "ingress"),
        ("some-key", "some value"),
        ("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-01"),
    )
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = UserDefinedServiceStub(channel).Method1
        answer = ask(UserDefinedMessage(name=transport), timeout=30, metadata=metadata)

    def span_names() -> list[str]:
        spans = [s for h in (ingress, leaf) for s in h.spans.remote().result(timeout_s=20)]
        names = [span["name"] for span in spans if span["trace"] == trace_id]
        of_serve = [name for name in names if name.startswith(("replica_", "route_"))]
        return sorted(of_serve, key=lambda name: ("Leaf" in name, "replica_" in name))

    names = eventually(lambda: found if len(found := span_names()) >= 3 else [])
    token = context.attach(baggage.set_baggage("fruit", "apple"))
    with trace.get_tracer("driver").start_as_current_span("driver") as span:
        seen = over(transport, leaf).remote().result(timeout_s=20)
    context.detach(token)
    return {
        "metadata": json.loads(answer.greeting),
        "span names": names,
        "trace of the driver": f"{span.get_span_context().trace_id:032x}",
        "seen of the driver": seen,
    }


if __name__ == "__main__":
    main()
