"""A library that observes gRPC, turned on in the driver, in a caller's replica and in the callee's.

    python -m tests.ray.driver_scripts.observed LIBRARY

Prints, as JSON, what was answered, by which transport, and what the library told of in each.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

from ray import serve

import serve_grpc
from serve_grpc._generated.replica_pb2 import CallRequest
from tests.observers import turn_on
from tests.peer.plain_client import PlainClient
from tests.ray.scripts import joined_ray

LANE = "SERVE_GRPC_LOCAL"
OPTIONS: dict[str, Any] = {
    "num_cpus": 0.1,
    "runtime_env": {"env_vars": {LANE: os.environ[LANE]}},
}


class Observed:
    def __init__(self, library: str) -> None:
        from tests.observers import turn_on  # by value: `turn_on` of this module is the driver's

        self.seen = turn_on(library)

    async def observed(self) -> list[str]:
        return self.seen()


@serve_grpc.deployment(ray_actor_options=OPTIONS)
class Callee(Observed):
    async def __call__(self, text: str) -> str:
        return text

    async def items(self, count: int) -> AsyncIterator[int]:
        for i in range(count):
            yield i


@serve_grpc.deployment(ray_actor_options=OPTIONS)
class Caller(Observed):
    def __init__(self, library: str, callee: Any) -> None:
        super().__init__(library)
        self.callee = callee.options(_by_reference=False)

    async def __call__(self, text: str) -> list[Any]:
        stream = self.callee.options(method_name="items", stream=True).remote(3)
        return [await self.callee.remote(text), [item async for item in stream]]


def main(library: str) -> None:
    from serve_grpc._serve.cluster import cluster_secret

    seen = turn_on(library)
    name = f"observed-{library}"
    with joined_ray():
        app = Caller.bind(library, Callee.bind(library))
        caller = serve_grpc.run(app, name=name, route_prefix=None).options(_by_reference=False)
        response = caller.remote("a")
        answers = [response.result(timeout_s=30), response.by_reference]
        callee = serve_grpc.get_deployment_handle("Callee", name).options(_by_reference=False)

        async def chosen() -> tuple[str, str]:
            async with callee.choose_replica() as replica:
                return replica.replica_metadata["serve_grpc"]["address"], replica.replica_id

        client = PlainClient(*asyncio.run(chosen()), cluster_secret())
        request = CallRequest(
            payload=b'[["plain"],{}]', request_serializer="orjson", response_serializer="orjson"
        )
        answers.append(client.call(request).payload.decode())
        client.close()
        of_driver = [name for name in seen() if "Session" in name]
        of_caller, of_callee = (h.observed.remote().result(timeout_s=30) for h in (caller, callee))
        serve.delete(name, _blocking=False)
    print(json.dumps({"answers": answers, "seen": [of_driver, of_caller, of_callee]}))


if __name__ == "__main__":
    main(sys.argv[1])
