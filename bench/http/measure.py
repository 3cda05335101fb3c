"""Measures the HTTP cases of one environment: `python -m bench.http.measure`.

Started by `worker.py`, with which it speaks as `workers/protocol.py` says. Contenders take turns
round by round against one running Serve instance; before each window the answer is checked.
"""

from __future__ import annotations

import subprocess
from typing import Any

import psutil

from bench.http.chain import HEADER, app_of, expected
from bench.http.server import Chains, running_chains
from bench.http.wrk import Measured, command, parse
from bench.on_serve.apps import describe
from bench.plan import contenders
from bench.results.run import Case, Sample
from bench.workers.protocol import Parent

__all__ = ["measure"]

GRACE_S = 20.0  # wrk ends by itself; a request that hangs keeps it for `ANSWER_TIMEOUT_S`


def main() -> None:
    """Do what the parent's order says."""
    parent = Parent()
    try:
        measure_all(parent)
    except Exception as error:
        parent.log(describe(error))
        raise


def measure_all(parent: Parent) -> None:
    """Start the chains, measure the parent's cases, stop them."""
    order = parent.order
    parent.log(f"starting Ray and Serve for {', '.join(case.id for case in order.cases)}")
    with running_chains() as chains:
        for case in order.cases:
            for number in range(order.rounds):
                parent.log(f"{case.id}, round {number + 1} of {order.rounds}")
                for contender in case.contenders:
                    parent.sample(case, measure(chains, case, contender, number))
        parent.log("stopping Ray and Serve")


def measure(chains: Chains, case: Case, contender: str, number: int) -> Sample:
    """One window. What goes wrong in it becomes the sample's error."""
    try:
        if (answer := chains.ask(contender)) != expected(contender):
            raise ValueError(f"the chain answered {answer!r}")
        pids = chains.pids[app_of(contenders.parse(contender))]
        replicas = {name: psutil.Process(pid) for name, pid in pids.items()}
        before = {name: _cpu_s(process) for name, process in replicas.items()}
        found = _load(chains.url(contender), contender, case.workload)
        used = {name: _cpu_s(process) - before[name] for name, process in replicas.items()}
        carrier = chains.carrier(contender)
    except Exception as error:
        return Sample(contender, number, error=describe(error))
    if found.failure is not None:
        return Sample(contender, number, error=found.failure)
    return Sample(
        contender,
        number,
        calls_per_s=found.requests / found.seconds,
        p50_ms=found.p50_ms,
        p99_ms=found.p99_ms,
        caller_cpu_us=used["A"] / found.requests * 1e6,
        callee_cpu_us=(used["B"] + used["C"]) / found.requests * 1e6,
        calls=found.requests,
        carrier=carrier,
    )


def _load(url: str, contender: str, workload: dict[str, Any]) -> Measured:
    """Run wrk.

    Raises:
        subprocess.SubprocessError: It failed, or did not end.
        ValueError: It printed no summary.
    """
    seconds = workload["window_s"]
    line = command(url, {HEADER: contender}, connections=workload["connections"], seconds=seconds)
    done = subprocess.run(
        line, stdout=subprocess.PIPE, text=True, check=True, timeout=seconds + GRACE_S
    )
    return parse(done.stdout)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
