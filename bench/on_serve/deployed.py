"""The applications of a worker: deployed when first needed, deleted when no case needs them again.

Callees are there once for each side and callers once for each carrier, see `sides.py`. Every idle
replica costs a little of the machine, so those that only the last sweeps need are not there before.
All handles here are Serve's own, by reference: they only give orders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from bench.on_serve.apps import Callee, Caller
from bench.on_serve.sides import actor_options, opted_in, pids_of
from bench.plan.contenders import Carrier, Contender, Side, parse
from bench.results.run import Case

__all__ = ["Apps", "CalleeApp", "callee_of", "callers_of"]

ROOMY = 2000
"""`max_ongoing_requests` where it is not to be felt."""
OPTIONS: dict[str, Any] = {"graceful_shutdown_wait_loop_s": 0.1}


@dataclass(frozen=True)
class CalleeApp:
    """A callee's side and shape; with a carrier, it is for callers over that one alone."""

    side: Side
    replicas: int
    max_ongoing_requests: int
    only_for: Carrier = ""

    @property
    def name(self) -> str:
        """Of its application."""
        words = ("callee", self.side, self.replicas, self.max_ongoing_requests, self.only_for)
        return "-".join(str(word) for word in words if word)


@dataclass(frozen=True)
class CallerApp:
    """A caller; `number` tells those of one side and carrier apart."""

    side: Side
    carrier: Carrier
    number: int

    @property
    def name(self) -> str:
        """Of its application."""
        words = ("caller", self.side, self.carrier, str(self.number))
        return "-".join(word for word in words if word)


def callee_of(case: Case, who: Contender) -> CalleeApp:
    """What a contender calls in a case: the same for both carriers, unless memory is at stake."""
    load = case.workload
    only_for: Carrier = who.carrier if load["kind"] == "memory" else ""
    ongoing = load.get("max_ongoing_requests", ROOMY)
    return CalleeApp(who.side, load.get("replicas", 1), ongoing, only_for)


def callers_of(case: Case, contender: str) -> int:
    """How many caller replicas make the load."""
    return parse(contender).callers or int(case.workload.get("callers", 1))


def _needed(case: Case) -> set[CalleeApp | CallerApp]:
    found: set[CalleeApp | CallerApp] = set()
    for contender in case.contenders:
        who = parse(contender)
        found.add(callee_of(case, who))
        count = callers_of(case, contender)
        found.update(CallerApp(who.side, who.carrier, number) for number in range(count))
    return found


class Apps:
    """What is deployed now.

    Args:
        log: Is told what is being deployed.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._callers: dict[CallerApp, DeploymentHandle] = {}
        self._callees: dict[CalleeApp, tuple[int, ...]] = {}

    async def keep_for(self, cases: Iterable[Case]) -> None:
        """Delete what none of `cases` needs."""
        needed = set[CalleeApp | CallerApp]().union(*map(_needed, cases))
        for app in {*self._callers, *self._callees} - needed:
            self._log(f"deleting {app.name}")
            if isinstance(app, CallerApp):
                del self._callers[app]
            else:
                del self._callees[app]
            # Under the throughput flags Serve drains for 30 s; idle as it is, nobody waits for it.
            await asyncio.to_thread(serve.delete, app.name, _blocking=False)

    async def deploy_for(self, case: Case) -> None:
        """Deploy what the case needs and is not there yet; wait until all of it runs."""
        missing = _needed(case) - self._callers.keys() - self._callees.keys()
        if not missing:
            return
        self._log(f"deploying {', '.join(sorted(app.name for app in missing))}")
        targets = [serve.RunTarget(_bound(app), app.name, route_prefix=None) for app in missing]
        await asyncio.to_thread(serve.run_many, targets)
        for app in missing:
            handle = serve.get_app_handle(app.name).options(_by_reference=True)
            if isinstance(app, CallerApp):
                self._callers[app] = handle
            else:
                self._callees[app] = await pids_of(handle, app.side, app.replicas)

    def callers(self, who: Contender, count: int) -> list[DeploymentHandle]:
        """Handles to so many replicas of `Caller`, each an application of its own."""
        return [self._callers[CallerApp(who.side, who.carrier, n)] for n in range(count)]

    def callee_pids(self, callee: CalleeApp) -> tuple[int, ...]:
        """The processes of the callee's replicas."""
        return self._callees[callee]


def _bound(app: CalleeApp | CallerApp) -> Application:
    if isinstance(app, CallerApp):
        options = {**OPTIONS, "ray_actor_options": actor_options(app.carrier)}
        return serve.deployment(max_ongoing_requests=10, **options)(Caller).bind()
    deployment = serve.deployment(
        num_replicas=app.replicas,
        max_ongoing_requests=app.max_ongoing_requests,
        ray_actor_options=actor_options(""),
        **OPTIONS,
    )
    return opted_in(deployment(Callee).bind(), app.side)
