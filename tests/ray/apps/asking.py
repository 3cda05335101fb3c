"""A deployment that gets handles to itself, inside its replica."""

from __future__ import annotations

from ray import serve

import serve_grpc

__all__ = ["asking_app"]


@serve_grpc.deployment(
    max_ongoing_requests=20,
    ray_actor_options={"num_cpus": 0.01},
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=3,
)
class Asker:
    async def __call__(self) -> list[bool]:
        one = serve_grpc.get_deployment_handle("Asker", "kept")
        two = serve_grpc.get_deployment_handle("Asker")
        app = serve_grpc.get_app_handle("kept")
        value = await one.options(_by_reference=False).echo.remote(1)
        return [one is two, app is serve_grpc.get_app_handle("kept"), value == 1]

    async def echo(self, value: int) -> int:
        return value


def asking_app() -> serve.Application:
    return Asker.bind()
