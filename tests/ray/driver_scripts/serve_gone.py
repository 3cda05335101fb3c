"""Serve is shut down while calls of every kind wait: each of them is told."""

from __future__ import annotations

import concurrent.futures
import tempfile
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

import serve_grpc
from tests.ray.apps.gated import Board, Gated
from tests.ray.apps.routed import AnyReplica
from tests.ray.scripts import own_ray
from tests.ray.waiting import eventually

OPTIONS: dict[str, Any] = {
    "ray_actor_options": {"num_cpus": 0.01},
    "max_ongoing_requests": 1,
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 1,
}
SETTLE_S = 20
CALLS = 5


def run(deployment: Any, name: str) -> Any:
    handle = serve_grpc.run(deployment.bind(), name=name, route_prefix=None)
    return handle.options(_by_reference=False)


def main() -> None:
    board = Board(Path(tempfile.mkdtemp()))
    responses: dict[str, Any] = {}
    with own_ray():
        gated = serve_grpc.deployment(**OPTIONS)(Gated)
        router = RequestRouterConfig(request_router_class=AnyReplica)
        handles = {
            "ours": run(gated, "ours"),
            "placed": run(gated.options(request_router_config=router), "placed"),
            "plain": run(serve.deployment(**OPTIONS)(Gated), "plain"),
        }
        for name, handle in handles.items():
            for number in range(CALLS):
                responses[f"{name}-{number}"] = handle.remote(board.path, f"{name}-{number}")
        eventually(lambda: board.count("start") == len(handles))
        responses["argument"] = handles["ours"].remote(board.path, responses["ours-0"])
        for deployment in ("ours", "nobody"):  # the second does not exist
            never = serve_grpc.get_deployment_handle("Never", deployment, _check_exists=False)
            responses[deployment] = never.options(_by_reference=False).remote()
        serve.shutdown()
        with concurrent.futures.ThreadPoolExecutor(len(responses)) as threads:
            waits = {n: threads.submit(error_of, r) for n, r in responses.items()}
            outcomes = {name: wait.result() for name, wait in waits.items()}
    for name, outcome in outcomes.items():
        print(name, outcome)
    assert not [name for name, outcome in outcomes.items() if outcome == "hangs"], outcomes


def error_of(response: Any) -> str:
    try:
        response.result(timeout_s=SETTLE_S)
    except TimeoutError:
        response.cancel()
        return "hangs"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:150]
    return "answered"


if __name__ == "__main__":
    main()
