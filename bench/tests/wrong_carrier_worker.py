"""A worker of the benchmark whose sessions all travel over the local lane, whatever they should."""

from __future__ import annotations

from bench.plan.contenders import parse
from bench.results.run import Sample
from bench.workers.protocol import Parent

if __name__ == "__main__":
    parent = Parent()
    for case in parent.order.cases:
        for name in case.contenders:
            carrier = "local" if parse(name).side == "serve_grpc" else ""
            parent.sample(case, Sample(name, 0, calls_per_s=5.0, calls=1, carrier=carrier))
