"""Ray Serve deployments that call each other over gRPC.

Opt in with `deployment` or `enable`, then call with `handle.options(_by_reference=False)`, or set
`RAY_SERVE_USE_GRPC_BY_DEFAULT=1`. Serve stays the control plane.

    deployment.py     deployment, enable, run, get_app_handle, get_deployment_handle
    handle.py         DeploymentHandle, wrap
    pinning.py        what `handle.pin()` gives: calls that all go to one replica
    response.py       DeploymentResponse, DeploymentResponseGenerator
    request_stream.py RequestStream, what a handler gets for a stream among its arguments
    statistics.py     HandleStatistics, what `handle_statistics(handle)` gives
    metrics.py        our own metrics, told to Ray once a second
    errors.py         the tree of errors
    serialization.py  register_serializer
    allow_list.py     the serializers that a deployment, or this process, allows
    config.py         settings from the environment
    threads.py        threads of our own
    states.py         tables of legal moves
    mailbox.py        functions to another event loop, one wake-up a burst
    pacing.py         long work on an event loop, a millisecond at a time
    caller/           from `handle.remote()` to a replica        (transport's loop)
    replica/          from a request to the user's code          (replica's loops)
    protocol/         frames and session machines                (pure)
    routing/          picking a replica                          (pure)
    streams/          credit, for producers and consumers of items
    carriers/         links, and the pumps on them; gRPC (its only importer), memory
    entrance/         who may come in, whichever carrier they come by
    _serve/           Ray's private names; rotate_secret, sign_call
    protos/           the wire format, for other languages
"""

from serve_grpc._serve.versions import check_ray_version

check_ray_version()

from serve_grpc import errors  # noqa: E402
from serve_grpc._serve.cluster import rotate_secret, sign_call  # noqa: E402
from serve_grpc.deployment import (  # noqa: E402
    deployment,
    enable,
    get_app_handle,
    get_deployment_handle,
    run,
)
from serve_grpc.handle import DeploymentHandle, wrap  # noqa: E402
from serve_grpc.request_stream import RequestStream  # noqa: E402
from serve_grpc.response import DeploymentResponse, DeploymentResponseGenerator  # noqa: E402
from serve_grpc.serialization import register_serializer  # noqa: E402
from serve_grpc.statistics import (  # noqa: E402
    HandleStatistics,
    ReplicaStatistics,
    handle_statistics,
)

__version__ = "0.1.0"

__all__ = [
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
    "HandleStatistics",
    "ReplicaStatistics",
    "RequestStream",
    "__version__",
    "deployment",
    "enable",
    "errors",
    "get_app_handle",
    "get_deployment_handle",
    "handle_statistics",
    "register_serializer",
    "rotate_secret",
    "run",
    "sign_call",
    "wrap",
]
