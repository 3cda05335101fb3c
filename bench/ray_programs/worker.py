"""Measures the cases of Ray's own programs: `python -m bench.ray_programs.worker`.

Speaks with its parent as `workers/protocol.py` says. Each program's application is deployed once
for each contender, in place of the last program's; then they take turns, one trial a round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
from ray import serve
from ray.serve.handle import DeploymentHandle

from bench.on_serve.apps import describe
from bench.on_serve.worker import local_ray
from bench.plan.ray_programs import LATENCY
from bench.ray_programs.programs import app_of, run_program
from bench.results.run import Case, Sample
from bench.workers.protocol import Parent

__all__ = ["main", "sample_of"]

ANSWER_S = 20.0


def main() -> None:
    """Do what the parent's order says."""
    parent = Parent()
    parent.log("starting Ray and Serve")
    with local_ray():
        Worker(parent).run()


class Worker:
    """Measures the parent's cases, one after another."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent

    def run(self) -> None:
        """All cases of the order."""
        for case in self._parent.order.cases:
            self._parent.log(f"deploying {case.workload['series']}")
            options = self._options(case)
            apps = [
                serve.RunTarget(
                    app_of(case.workload["program"], options, contender),
                    name=_app_name(contender),
                    route_prefix=None,
                )
                for contender in case.contenders
            ]
            handles = dict(zip(case.contenders, serve.run_many(apps), strict=True))
            for number in range(self._parent.order.rounds):
                for contender in case.contenders:
                    sample = _sample(case, contender, number, options, handles[contender])
                    self._parent.sample(case, sample)

    def _options(self, case: Case) -> dict[str, Any]:
        options: dict[str, Any] = dict(case.workload["options"])
        if case.workload["program"] != LATENCY:
            options["trial_runtime"] = self._parent.order.window_s
        return options


def _app_name(contender: str) -> str:
    return contender.replace(": ", "-").replace(" ", "-")


def _sample(
    case: Case, contender: str, number: int, options: dict[str, Any], handle: DeploymentHandle
) -> Sample:
    """One trial. Failures are samples too."""
    try:
        answer = run_program(case.workload["program"], options, contender, handle)
        sample = sample_of(contender, number, answer, case.workload["size"])
        return replace(sample, carrier=handle.carrier.remote().result(timeout_s=ANSWER_S))
    except Exception as error:  # the run goes on, and the report shows the reason
        return Sample(contender, number, error=describe(error))


def sample_of(contender: str, number: int, answer: Any, tokens: int) -> Sample:
    """What a program answered, as a sample.

    Args:
        answer: See `run_program`.
        tokens: Items of each stream; 0 if the program streams nothing.
    """
    if isinstance(answer, pd.Series):
        rate, latencies = 1e3 / answer.mean(), answer
    else:
        rate, _, latencies = answer
    return Sample(
        contender,
        number,
        calls_per_s=float(rate) / (tokens or 1),
        p50_ms=float(latencies.quantile(0.5)) if len(latencies) else None,
        p99_ms=float(latencies.quantile(0.99)) if len(latencies) else None,
        tokens_per_s=float(rate) if tokens else None,
        calls=len(latencies),
    )


if __name__ == "__main__":
    main()
