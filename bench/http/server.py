"""Ray, Serve and the chains of all contenders behind a proxy, for as long as a `with` block lasts.

Which proxy and which of Serve's flags, this process' environment says, see `environment.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from bench.http.chain import CHAINS, HEADER, app_of, build
from bench.http.environment import HOST, free_port
from bench.on_serve.sides import pids_of
from bench.plan.contenders import BY_REFERENCE, OURS, OVER_GRPC, parse

__all__ = ["Chains", "running_chains"]

READY_S = 30.0
ANSWER_S = 10.0
POLL_S = 0.1


@dataclass(frozen=True)
class Chains:
    """The running chains.

    Attributes:
        loop: Where `handles` are used: Serve binds them to one.
        handles: Serve's own, to give orders, by application and by the deployment's name.
        pids: Process of each deployment's replica, likewise.
    """

    port: int
    loop: asyncio.AbstractEventLoop
    handles: dict[str, dict[str, DeploymentHandle]]
    pids: dict[str, dict[str, int]]

    def url(self, contender: str) -> str:
        """Where the chain of a contender answers."""
        return f"http://{HOST}:{self.port}{_route(app_of(parse(contender)))}"

    def carrier(self, contender: str) -> str:
        """What has carried the inner calls, see `Sample.carrier`; of a contender that was asked."""
        handles = self.handles[app_of(parse(contender))]
        found = (self.loop.run_until_complete(_told(handles[hop], contender)) for hop in "AB")
        return ",".join(sorted(set(found)))

    def ask(self, contender: str) -> str:
        """One request, answered over `contender`.

        Raises:
            httpx.HTTPError: No answer, or one of another status than 200.
        """
        headers = {HEADER: contender}
        url = self.url(contender)
        answer = httpx.get(url, headers=headers, timeout=ANSWER_S, trust_env=False)
        return answer.raise_for_status().text


@contextlib.contextmanager
def running_chains() -> Iterator[Chains]:
    """Start everything, on ports that are free; stop it at the end.

    Raises:
        TimeoutError: A chain did not answer in time.
    """
    loop = asyncio.new_event_loop()
    try:
        ray.init(
            address="local",
            num_cpus=4,  # what replicas and proxies reserve; no statement about the machine
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # of this process; not of replicas
        port = free_port()
        serve.start(http_options={"host": HOST, "port": port})
        serve.run_many(
            [serve.RunTarget(build(w), app_of(w), route_prefix=_route(app_of(w))) for w in CHAINS]
        )
        handles = loop.run_until_complete(_handles())
        chains = Chains(port, loop, handles, loop.run_until_complete(_pids(handles)))
        for contender in (BY_REFERENCE, OURS, OVER_GRPC):
            _wait_until_ready(chains, contender)
        yield chains
    finally:
        ray.shutdown()  # the cluster is ours alone: Serve and its replicas go with it
        loop.close()


def _route(app: str) -> str:
    return f"/{app}"


async def _told(handle: DeploymentHandle, contender: str) -> str:
    return str(await handle.carrier.remote(contender))


async def _handles() -> dict[str, dict[str, DeploymentHandle]]:
    """On the loop that they are for."""
    return {
        app: {
            name: serve.get_deployment_handle(name, app_name=app).options(_by_reference=True)
            for name in "ABC"
        }
        for app in map(app_of, CHAINS)
    }


async def _pids(handles: dict[str, dict[str, DeploymentHandle]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for who in CHAINS:
        app = app_of(who)
        found[app] = {}
        for name, handle in handles[app].items():
            (found[app][name],) = await pids_of(handle, who.side)
    return found


def _wait_until_ready(chains: Chains, contender: str) -> None:
    """A proxy may hear of an application a moment after it runs."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            chains.ask(contender)
            return
        except httpx.HTTPError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer within {READY_S:.0f} s: {error}") from error
        time.sleep(POLL_S)
