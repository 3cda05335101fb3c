"""What an HTTP client sees of an ingress, behind the proxy that this process' variables ask for.

Prints a JSON object: for each transport of the inner calls, and each check, "yes" or what went
wrong. All of it goes on at once, so that what has to be waited for is waited for once.
"""

from __future__ import annotations

import json
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS, RAY_SERVE_ENABLE_HA_PROXY

import serve_grpc
from tests.ray.apps.ingress import fastapi_app
from tests.ray.compat.behaviours import TRANSPORTS
from tests.ray.scripts import own_ray
from tests.ray.visitors import Visitor
from tests.ray.waiting import eventually

__all__ = ["ANSWERING", "GIVING_UP", "leaves_stream"]

TIMEOUT_S = 4.0
"""Serve's `request_timeout_s`, for the check that wants to see it; others ask for more."""
THREADS = 32
LINKS = ("Front", "Middle", "Back")
GIVEN_UP = {"CancelledError", "unknown"}


class Visit:
    """One transport, one key: a client, and the notes of the links."""

    def __init__(self, address: str, transport: str, links: list[Any]) -> None:
        self.transport = transport
        self.visitor = Visitor(address, "/chain", transport)
        self.key = uuid.uuid4().hex
        self.links = links

    def notes(self) -> list[str]:
        return [link.watch.remote(self.key).result(timeout_s=30)[0] for link in self.links]

    def release(self) -> None:
        self.links[-1].release.remote(self.key).result(timeout_s=30)

    def wait_for(self, note: str) -> None:
        eventually(lambda: self.notes() == [note] * 3)


def answers(visit: Visit) -> None:
    assert visit.visitor.get("/echo", value="hello").json() == "hello"
    assert visit.visitor.get("/echo-in-thread", value="hello").json() == "hello"
    answer = visit.visitor.get("/request", headers={"X-Request-ID": visit.key})
    assert [link["request_id"] for link in answer.json()] == [visit.key] * 3


def streams(visit: Visit) -> None:
    with visit.visitor.stream("/numbers", key=visit.key, number=4, at_once=2) as lines:
        assert [next(lines), next(lines)] == ["0", "1"]
        visit.release()
        assert list(lines) == ["2", "3"]


def chats(visit: Visit) -> None:
    with visit.visitor.chat("/chat", key=visit.key) as chat:
        for text in ("one", "two"):
            chat.send(text)
            assert chat.recv(timeout=30) == text


def fails(visit: Visit) -> None:
    assert visit.visitor.get("/fail", kind="ValueError").status_code == 500
    assert visit.visitor.get("/fail", kind="Detailed").status_code == 422


def disconnects(visit: Visit) -> None:
    with visit.visitor.asking("/hold", key=visit.key):
        visit.wait_for("running")
    visit.wait_for("CancelledError")


def leaves_stream(visit: Visit) -> None:
    with visit.visitor.stream("/numbers", key=visit.key, number=4, at_once=2) as lines:
        assert [next(lines), next(lines)] == ["0", "1"]
    eventually(lambda: visit.notes()[-1] == "CancelledError")


def times_out(visit: Visit) -> None:
    patient = Visitor(visit.visitor.address, "/chain", visit.transport, timeout_s=None)
    answer = patient.get("/hold", key=visit.key)
    assert answer.status_code == 408, answer
    eventually(lambda: set(visit.notes()) <= GIVEN_UP)
    assert visit.notes()[0] == "CancelledError"


ANSWERING = (answers, streams, chats, fails)
GIVING_UP = (disconnects, times_out)
CHECKS: dict[str, Callable[[Visit], None]] = {
    check.__name__: check for check in (*ANSWERING, *GIVING_UP, leaves_stream)
}


def address(port: int) -> str:
    """Where the ingress answers: its proxy, or with direct ingress the replica."""
    if RAY_SERVE_ENABLE_DIRECT_INGRESS and not RAY_SERVE_ENABLE_HA_PROXY:
        controller = serve.context._get_global_client()._controller
        for group in ray.get(controller.get_target_groups.remote("chain")):
            if group.protocol == "HTTP":
                (target,) = group.targets
                assert target.port != port, "that is the proxy"
                port = target.port
    return f"127.0.0.1:{port}"


def result(check: Callable[[Visit], None], visit: Visit) -> str:
    try:
        check(visit)
    except Exception:
        return f"{visit.notes()} {traceback.format_exc(limit=-3)}"
    return "yes"


def main() -> None:
    with own_ray(request_timeout_s=TIMEOUT_S) as port, ThreadPoolExecutor(THREADS) as pool:
        serve_grpc.run(fastapi_app(), name="chain", route_prefix="/chain")
        where = address(port)
        for transport in TRANSPORTS:
            Visitor(where, "/chain", transport).wait_until_ready()
        handles = [serve_grpc.get_deployment_handle(name, "chain") for name in LINKS]
        links = [handle.options(_by_reference=True) for handle in handles]
        found = {
            transport: {
                name: pool.submit(result, check, Visit(where, transport, links))
                for name, check in CHECKS.items()
            }
            for transport in TRANSPORTS
        }
        print(json.dumps({t: {n: r.result() for n, r in of.items()} for t, of in found.items()}))


if __name__ == "__main__":
    main()
