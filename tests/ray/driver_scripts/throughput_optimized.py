"""Under RAY_SERVE_THROUGHPUT_OPTIMIZED=1 handles work in sync and async drivers alike.

The flag runs the router on the caller's loop, where Serve's own handle has no sync `.result()`.
"""

from __future__ import annotations

import asyncio

import serve_grpc
from tests.ray.apps.bench import bench_app
from tests.ray.scripts import own_ray


def main() -> None:
    with own_ray():
        handle = serve_grpc.run(bench_app(), name="bench", route_prefix=None)
        by_value = handle.options(_by_reference=False)
        assert by_value.remote(1).result(timeout_s=20) == 1
        items = by_value.options(method_name="items", stream=True)
        assert list(items.remote(3)) == [0, 1, 2]
        assert by_value.call_inner.remote("pid").result(timeout_s=20) > 0
        assert by_value.list_inner.remote("items", 3).result(timeout_s=20) == [0, 1, 2]

        async def in_a_loop() -> None:
            fresh = serve_grpc.get_app_handle("bench").options(_by_reference=False)
            assert await fresh.remote(2) == 2
            stream = fresh.options(method_name="items", stream=True).remote(3)
            assert [item async for item in stream] == [0, 1, 2]

        asyncio.run(in_a_loop())
        asyncio.run(in_a_loop())


if __name__ == "__main__":
    main()
