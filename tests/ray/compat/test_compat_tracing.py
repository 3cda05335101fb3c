"""Serve's tracing: spans joined across a call, and the trace context that code sees.

The replicas keep their spans for the test (`tests/ray/apps/traced.py`). What only a driver or a
proxy reads is tried by `driver_scripts/traced_ingress.py`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest

import serve_grpc
from serve_grpc._generated.replica_pb2 import CallRequest
from tests.peer.plain_client import CALL, PlainClient
from tests.ray.apps.traced import TRACING, Front, Leaf
from tests.ray.compat.behaviours import BY_REFERENCE, behaviour
from tests.ray.listing import infos_of
from tests.ray.waiting import eventually

Span = dict[str, Any]

OPTIONS = {
    "max_ongoing_requests": 20,
    "graceful_shutdown_wait_loop_s": 0.1,
    "ray_actor_options": {"num_cpus": 0.01, "runtime_env": {"env_vars": TRACING}},
}


class App:
    """Top calls Front, and Front calls Leaf; one replica of each."""

    def __init__(self, deploy: Callable[..., Any]) -> None:
        enabled = serve_grpc.deployment(**OPTIONS)
        leaf, front = enabled(Leaf).bind(), enabled(Front)
        self.top = deploy(front.options(name="Top").bind(front.bind(leaf)), "traced")
        self.front, self.leaf = (
            serve_grpc.get_deployment_handle(name, "traced") for name in ("Front", "Leaf")
        )

    def trace(self, trace: str, *, spans: int, having: str = "") -> list[Span]:
        """So many spans of one trace, the parent before the child."""

        def found() -> list[Span]:
            got = [handle.spans.remote() for handle in (self.top, self.front, self.leaf)]
            flat = [span for response in got for span in response.result(timeout_s=20)]
            return [s for s in flat if s["trace"] == trace and having in s["name"]]

        seen = eventually(lambda: s if len(s := found()) == spans else [])
        ids = {span["id"] for span in seen}
        (first,) = [span for span in seen if span["parent"] not in ids]
        chain = [first]
        while len(chain) < spans:
            chain += [span for span in seen if span["parent"] == chain[-1]["id"]]
        return chain


@pytest.fixture(scope="module")
def app(deploy: Callable[..., Any]) -> App:
    return App(deploy)


def names(spans: list[Span]) -> list[str]:
    return [span["name"] for span in spans]


@behaviour(
    "Observability",
    "The spans of an inner call, `route_to_replica` and `replica_handle_request`, join the trace "
    "of the request that makes it, with Serve's attributes",
)
def test_an_inner_call_is_part_of_the_trace(transport, app):
    trace, _ = app.front.call.remote(transport.name).result(timeout_s=30)
    front, route, leaf = app.trace(trace, spans=3)
    assert names([front, route, leaf]) == [
        "replica_handle_request Front call",
        "route_to_replica Leaf __call__",
        "replica_handle_request Leaf __call__",
    ]
    assert {span["kind"] for span in (front, route, leaf)} == {"SERVER"}
    of_both = {
        "request_id": front["attributes"]["request_id"],
        "deployment": "Leaf",
        "app": "traced",
        "call_method": "__call__",
        "route": "",
        "multiplexed_model_id": "",
        "is_streaming": "False",
        "rpc.system": "RequestProtocol.UNDEFINED",
        "rpc.method": "__call__",
        "rpc.service": "Leaf",
    }
    of_the_route = {"is_http_request": "False", "is_grpc_request": "False"}
    assert route["attributes"] == {**of_both, **of_the_route, "resource.name": route["name"]}
    replica_id = leaf["attributes"].pop("replica_id")
    assert replica_id != front["attributes"]["replica_id"]
    assert leaf["attributes"] == {**of_both, "resource.name": leaf["name"]}


@behaviour("Observability", "A trace goes on through a chain of calls by reference and over gRPC")
def test_a_chain_of_both_transports_is_one_trace(transport, app):
    for first, second in ((transport.name, BY_REFERENCE), (BY_REFERENCE, transport.name)):
        trace, _ = app.top.call.remote(first, "call", second).result(timeout_s=30)
        assert names(app.trace(trace, spans=5)) == [
            "replica_handle_request Top call",
            "route_to_replica Front call",
            "replica_handle_request Front call",
            "route_to_replica Leaf __call__",
            "replica_handle_request Leaf __call__",
        ]


@behaviour("Observability", "The spans of a stream join the trace, and last as long as it does")
def test_a_stream_is_part_of_the_trace(transport, app):
    for method in ("items", "items_in_thread"):
        trace, seen = app.front.stream.remote(transport.name, method).result(timeout_s=30)
        _, route, leaf = app.trace(trace, spans=3)
        assert names([route, leaf]) == [
            f"route_to_replica Leaf {method}",
            f"replica_handle_request Leaf {method}",
        ]
        assert [span["attributes"]["is_streaming"] for span in (route, leaf)] == ["True", "True"]
        assert [trace in item["traceparent"] for item in seen] == [True, True]


@behaviour(
    "Observability",
    "A span that `def` code opens in its thread, and a call that it makes, join the trace",
)
def test_code_in_a_thread_is_part_of_the_trace(transport, app):
    trace, _ = app.front.call.remote(transport.name, "in_thread").result(timeout_s=30)
    assert names(app.trace(trace, spans=4))[-2:] == [
        "replica_handle_request Leaf in_thread",
        "user's own",
    ]
    trace, _ = app.front.in_thread.remote(transport.name).result(timeout_s=30)
    assert names(app.trace(trace, spans=3))[0] == "replica_handle_request Front in_thread"


@behaviour("Observability", "The replica's span records the exception of a call that fails")
def test_the_span_of_a_failed_call_has_its_exception(transport, app):
    trace, _ = app.front.fail.remote(transport.name).result(timeout_s=30)
    _, route, leaf = app.trace(trace, spans=3)
    assert (route["errors"], leaf["errors"]) == ([], ["KeyError"])


@behaviour("Observability", "The replica's span of a cancelled call ends, and records the cancel")
def test_the_span_of_a_cancelled_call_says_so(transport, app, key):
    trace, _ = app.front.cancel.remote(transport.name, key).result(timeout_s=30)
    _, leaf = app.trace(trace, spans=2, having="Leaf forever")
    assert leaf["errors"] == ["asyncio.exceptions.CancelledError"]


@behaviour("Observability", "Requests that run at the same time stay in their own traces")
def test_traces_do_not_mix(transport, app):
    calls = [app.front.call.remote(transport.name, "in_thread") for _ in range(30)]
    traces = [call.result(timeout_s=60)[0] for call in calls]
    assert len(set(traces)) == 30
    for trace in traces[::10]:
        assert len(app.trace(trace, spans=4)) == 4


def test_a_call_through_the_plain_door_joins_its_callers_trace(app):
    from serve_grpc._serve.cluster import cluster_secret

    app.leaf.options(_by_reference=False).remote().result(timeout_s=20)  # knows the replica now
    (info,) = infos_of(app.leaf)
    address = info.replica_metadata["serve_grpc"]["address"]
    client = PlainClient(address, info.replica_id.unique_id, cluster_secret())
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    request = CallRequest(payload=b"[[], {}]", request_serializer="orjson")
    metadata = client.proof(CALL, request.SerializeToString())
    client.call(request, metadata=(*metadata, ("traceparent", f"00-{trace}-{parent}-01")))
    client.close()
    (span,) = app.trace(trace, spans=1)
    assert (span["name"], span["parent"]) == ("replica_handle_request Leaf __call__", parent)


@behaviour("Observability", "A handler's request context has the trace context of the call to it")
def test_the_request_context_has_the_trace_context(transport, app):
    trace, seen = app.front.call.remote(transport.name).result(timeout_s=30)
    _, route, _ = app.trace(trace, spans=3)
    assert f"-{trace}-{route['id']}-" in seen["traceparent"]


# ------------------------------------------------------------ driver, proxy, and Ray's own tracing


@pytest.fixture(scope="module")
def script(run_script: Callable[..., str]) -> dict[str, Any]:
    """What each transport gave, by its name."""
    printed: dict[str, Any] = json.loads(run_script("traced_ingress", env=TRACING))
    return printed


@behaviour(
    "Observability",
    "A trace that begins at the client of a gRPC ingress reaches the last of the inner calls",
)
def test_a_trace_begins_at_the_client(transport, script):
    got = script[transport.name]
    assert got["span names"] == [
        "replica_handle_request Ingress Method1",
        "route_to_replica Leaf grpc_metadata",
        "replica_handle_request Leaf grpc_metadata",
    ]


@behaviour(
    "Ingress",
    "Code behind a gRPC ingress finds the context of the gRPC request, in inner calls too",
)
def test_inner_calls_see_the_context_of_the_grpc_request(transport, script):
    assert script[transport.name]["metadata"]["some-key"] == "some value"


@behaviour(
    "Observability",
    "With Ray's own tracing on, a handler's request context has the caller's Ray trace context",
)
def test_rays_own_trace_context_is_carried(transport, script):
    got = script[transport.name]
    assert got["trace of the driver"] in got["seen of the driver"]["traceparent"]
    assert got["seen of the driver"]["baggage"] == "fruit=apple"
