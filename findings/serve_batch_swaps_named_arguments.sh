#!/usr/bin/env bash
# Ray Serve's @serve.batch gives a function the arguments of another parameter, if two calls of
# one batch name them in another order.
#
# Versions: ray[serve] 2.60.0, CPython 3.11.7
# Expected: arguments given by name reach the parameter of that name, in whatever order a call
# writes them.
# What happens: the batch is put together by position of the arguments in the call; the names are
# those of the batch's first call. The second call below divides 2 by 6. Nothing fails, and it
# depends on which calls happen to meet. Passing everything by position, or always in one order,
# is safe.
# Output seen:
#   alone:    divide(bottom=2, top=6) = 3.0
#   together: divide(top=6, bottom=2), divide(bottom=2, top=6) = [3.0, 0.3333333333333333]
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'ray[serve]==2.60.0' || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import asyncio
import sys

import ray
from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=10)
class Divider:
    @serve.batch(max_batch_size=2, batch_wait_timeout_s=5)
    async def divide(self, top: list[int], bottom: list[int]) -> list[float]:
        return [t / b for t, b in zip(top, bottom)]

    async def alone(self) -> float:
        return await self.divide(bottom=2, top=6)

    async def together(self) -> list[float]:
        return await asyncio.gather(self.divide(top=6, bottom=2), self.divide(bottom=2, top=6))


ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
try:
    handle = serve.run(Divider.bind(), route_prefix=None)
    alone = handle.alone.remote().result()
    together = handle.together.remote().result()
finally:
    ray.shutdown()
print("alone:    divide(bottom=2, top=6) =", alone)
print("together: divide(top=6, bottom=2), divide(bottom=2, top=6) =", together)
sys.exit(not (alone == 3.0 and together == [3.0, 2 / 6]))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
