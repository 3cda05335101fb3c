"""A worker of the benchmark that sends one sample and ends with status 3."""

from __future__ import annotations

import sys

from bench.results.run import Sample
from bench.workers.protocol import Parent

if __name__ == "__main__":
    parent = Parent()
    print("not for the parent")
    first = parent.order.cases[0]
    parent.log("about to fail")
    parent.sample(first, Sample(first.contenders[0], 0, calls_per_s=5.0, calls=1))
    sys.exit(3)
