"""A caller whose process may open no more files: what its calls see, then and afterwards.

Prints JSON: {"during": outcomes by name, "after": the same, "recovered_s": ..., "states": ...}.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections import Counter
from typing import IO, Any

import serve_grpc
from tests.ray.apps.watched import WATCHED
from tests.ray.scripts import own_ray
from tests.ray.waiting import eventually

FILES = 64


def _all_files() -> list[IO[bytes]]:
    """As many as can be opened."""
    files: list[IO[bytes]] = []
    while True:
        try:
            files.append(open("/dev/null", "rb"))  # noqa: SIM115
        except OSError:
            return files


async def _ends(handle: Any, number: int) -> Counter[str]:
    async def one(value: int) -> str:
        try:
            return "ok" if await handle.echo.remote(value) == value else "misdelivered"
        except Exception as error:
            return type(error).__module__ + "." + type(error).__name__

    return Counter(await asyncio.gather(*(one(i) for i in range(number))))


def main() -> None:
    with own_ray():
        app = WATCHED.options(num_replicas=3).bind()
        handle: Any = serve_grpc.run(app, name="files", route_prefix=None)
        handle = handle.options(_by_reference=False)
        patient, hasty = handle, handle.options(timeout_s=2)
        # The handle's own connections to Ray are there; the sessions are not.
        handle.options(_by_reference=True).echo.remote(1).result(timeout_s=30)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        loop = asyncio.new_event_loop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
        taken = _all_files()
        waiting = [patient.echo.remote(i) for i in range(20)]
        during = loop.run_until_complete(_ends(hasty, 50))
        for file in taken:
            file.close()
        restored_s = time.monotonic()
        eventually(lambda: all(response._call.done for response in waiting), timeout_s=30)
        recovered_s = time.monotonic() - restored_s
        seen = {
            "during": during,
            "waited": Counter(response.result() == i for i, response in enumerate(waiting))[True],
            "recovered_s": recovered_s,
            "after": loop.run_until_complete(_ends(patient, 200)),
            "states": [r.state for r in serve_grpc.handle_statistics(handle).replicas],
        }
        loop.close()
        print(json.dumps(seen))


if __name__ == "__main__":
    main()
