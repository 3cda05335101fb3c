"""A driver that makes calls and ends, in the way its first argument says. It then prints nothing.

Everything that is written to stderr after "END" is for `test_a_driver_that_ends_says_nothing`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import ray

import serve_grpc
from tests.ray.apps.bench import Workbench
from tests.ray.instance import start_ray

OPTIONS: dict[str, Any] = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}}


def deployed() -> Any:
    app = serve_grpc.deployment(**OPTIONS)(Workbench).bind()
    return serve_grpc.run(app, name="ends", route_prefix=None).options(_by_reference=False)


def use_in_thread() -> None:
    handle = deployed()
    responses = [handle.remote(number) for number in range(10)]
    assert [response.result(timeout_s=30) for response in responses] == list(range(10))
    handle.hold.remote("for ever")


async def use_on_loop() -> None:
    handle = deployed()
    answers = await asyncio.gather(*(handle.remote(number) for number in range(10)))
    assert answers == list(range(10))
    # `asyncio.run` waits for this thread, after it has cancelled every task.
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 1)


def main(how: str) -> None:
    start_ray(num_cpus=4)
    if how == "on_loop":
        asyncio.run(use_on_loop())
    else:
        use_in_thread()
    print("END", file=sys.stderr, flush=True)
    if how == "leaves_ray":
        ray.shutdown()
        time.sleep(3)  # what lives on would try to reach the replicas


if __name__ == "__main__":
    main(sys.argv[1])
