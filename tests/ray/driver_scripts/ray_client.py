"""A Ray Client (`RAY_ADDRESS=ray://...`) deploys an application and calls it over each transport.

Prints {transport: {what: answer, or "the kind of error: its text"}} as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import ray
from ray import serve

import serve_grpc
from tests.ray.apps.operations import OPTIONS
from tests.ray.apps.plain import Plain
from tests.ray.compat.behaviours import TRANSPORTS, over

NAME = "by-client"


def outcome(call: Callable[[], Any]) -> Any:
    """What it gives, or raises."""
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    ray.init(namespace="serve", configure_logging=False)
    assert ray.util.client.ray.is_connected()
    app = serve_grpc.deployment(**OPTIONS)(Plain).bind()
    handle = serve_grpc.run(app, name=NAME, route_prefix=None)
    seen = {}
    for transport in TRANSPORTS:
        called = over(transport, handle)
        seen[transport] = {
            "answers": [
                outcome(lambda i=i, called=called: called.remote(i).result(timeout_s=20))
                for i in range(3)
            ],
            "error": outcome(
                lambda called=called: called.fail.remote("ValueError").result(timeout_s=20)
            ),
            "stream": outcome(
                lambda called=called: list(
                    called.options(method_name="items", stream=True).remote(3)
                )
            ),
        }
    serve.delete(NAME, _blocking=False)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
