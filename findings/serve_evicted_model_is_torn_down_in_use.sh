#!/usr/bin/env bash
# Ray Serve calls the __del__ of a multiplexed model while a request still runs on it, and Python
# calls it once more.
#
# Versions: ray[serve] 2.60.0, CPython 3.11.7
# Expected: a model that has to make room is released when the last request that uses it is done;
# a finalizer runs once, when nobody has the object any more.
# What happens: to make room Serve calls model.__del__() itself, at once, whoever uses the model.
# A __del__ that frees a GPU or closes a session pulls it from under a running request. When the
# request is done, the interpreter calls __del__ a second time.
# Output seen:
#   A begins
#   A is torn down
#   B begins
#   A ends
#   A is torn down
#   B ends
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
class Zoo:
    def __init__(self) -> None:
        self.log: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=1)
    async def load(self, name: str):
        log = self.log

        class Model:
            async def use(self) -> None:
                log.append(f"{name} begins")
                await asyncio.sleep(0.5)
                log.append(f"{name} ends")

            def __del__(self) -> None:
                log.append(f"{name} is torn down")

        return Model()

    async def __call__(self) -> list[str]:
        async def request(name: str) -> None:
            model = await self.load(name)
            await model.use()

        await asyncio.gather(request("A"), request("B"))
        return self.log


ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
try:
    log = serve.run(Zoo.bind(), route_prefix=None).remote().result()
finally:
    ray.shutdown()
print(*log, sep="\n")
in_use = log[log.index("A begins") : log.index("A ends")]
sys.exit(not ("A is torn down" in in_use and log.count("A is torn down") == 2))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
