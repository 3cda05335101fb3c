"""Ray, Serve and both sides' chains behind a proxy, for as long as a `with` block lasts.

Which proxy and which of Serve's flags, this process' environment says, see `http_environment.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

import httpx
import ray
from ray import serve

from bench.contenders import BY_REFERENCE, OURS, Side, parse
from bench.http_chain import HEADER, app_of, build
from bench.http_environment import HOST, free_port
from bench.sides import pids_of

__all__ = ["Chains", "running_chains"]

READY_S = 30.0
ANSWER_S = 10.0
POLL_S = 0.1


@dataclass(frozen=True)
class Chains:
    """The running chains.

    Attributes:
        pids: Process of each deployment's replica, by side and by the deployment's name.
    """

    port: int
    pids: dict[Side, dict[str, int]]

    def url(self, contender: str) -> str:
        """Where the chain of a contender answers."""
        return f"http://{HOST}:{self.port}{_route(parse(contender).side)}"

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
    sides = get_args(Side)
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
            [serve.RunTarget(build(s), app_of(s), route_prefix=_route(s)) for s in sides]
        )
        chains = Chains(port, asyncio.run(_pids(sides)))
        for contender in (BY_REFERENCE, OURS):
            _wait_until_ready(chains, contender)
        yield chains
    finally:
        ray.shutdown()  # the cluster is ours alone: Serve and its replicas go with it


def _route(side: Side) -> str:
    return f"/{side}"


async def _pids(sides: Iterable[Side]) -> dict[Side, dict[str, int]]:
    found: dict[Side, dict[str, int]] = {}
    for side in sides:
        found[side] = {}
        for name in "ABC":
            handle = serve.get_deployment_handle(name, app_name=app_of(side))
            (found[side][name],) = await pids_of(handle, side)
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
