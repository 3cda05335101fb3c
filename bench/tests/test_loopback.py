"""The micro-benchmarks drive a caller and a replica in one process; the stand-ins must fit them."""

from __future__ import annotations

import asyncio

import pytest

from bench.stand_ins.loopback import loopback


@pytest.mark.parametrize("serializer", ["cloudpickle", "orjson"])
def test_a_call_over_the_loopback_comes_back(serializer: str) -> None:
    async def echoed() -> list[str]:
        async with loopback(serializer) as caller:
            return [await caller.call("alone"), *await asyncio.gather(*map(caller.call, "ab"))]

    assert asyncio.run(echoed()) == ["alone", "a", "b"]
