"""One replica of `Watched` that the tests of this directory share."""

from __future__ import annotations

from typing import Any

from ray import serve

import serve_grpc
from tests.ray.apps.watched import WATCHED

__all__ = ["watched_handle"]

NAME = "watched"


def watched_handle() -> serve_grpc.DeploymentHandle[Any]:
    """By-value handle; deployed for the first who asks, and gone with the session's Serve."""
    if NAME not in serve.status().applications:
        serve_grpc.run(WATCHED.bind(), name=NAME, route_prefix=None)
    handle = serve_grpc.get_app_handle(NAME).options(_by_reference=False)
    handle.pid.remote().result(timeout_s=30)
    return handle
