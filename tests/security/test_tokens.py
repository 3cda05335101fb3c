"""Ten thousand wrong and cut proofs: all refused, no memory kept of them, no line written."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import grpc
import psutil
import pytest
import ray

import serve_grpc
from serve_grpc._generated.replica_pb2 import CallRequest
from serve_grpc.protocol.handshake import sign_call
from tests.peer.plain_client import CALL
from tests.ray.apps.guarded import Guarded
from tests.security.endpoints import OPTIONS, Target, decoded, deployed, targets_of

# `full`: ten thousand take long; `tests/peer` sees it when one wrong token is taken.
pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

CALLS = 10_000
WARM_UP = 1_000
AT_ONCE = 50
MAX_GROWTH_BYTES = 8 * 1024 * 1024
OF_RAYS_CORE = "python-core-worker"
"""Begins the names of the files that Ray's core writes, about itself and at any time."""
REQUEST = CallRequest(request_serializer="orjson", payload=b"[[1], {}]").SerializeToString()


@pytest.fixture(scope="module")
def guarded(serve_instance):
    with deployed(serve_grpc.deployment(**OPTIONS)(Guarded).bind(), "tokens") as handle:
        assert handle.remote(1).result(timeout_s=30) == 1
        yield handle


def wrong_token(target: Target, number: int) -> str:
    """One that proves nothing, each time another one."""
    good = sign_call(
        target.secret, CALL, target.replica_id, REQUEST, os.urandom(8).hex(), time.time()
    )
    kind = number % 6
    if kind == 0:
        return good[: number % len(good)]
    if kind == 1:
        at = number % 64 + 1
        return good[:-at] + ("0" if good[-at] != "0" else "1") + good[len(good) - at + 1 :]
    if kind == 2:
        other = os.urandom(32)
        return sign_call(other, CALL, target.replica_id, REQUEST, f"{number}", time.time())
    if kind == 3:
        return good + "0" * (number % 100 + 1)
    if kind == 4:
        past_s = time.time() - 3600
        return sign_call(target.secret, CALL, target.replica_id, REQUEST, f"{number}", past_s)
    return "serve-grpc-v1 " + os.urandom(1000).hex()


async def attack(target: Target, numbers: range) -> set[grpc.StatusCode]:
    """Make a call with a wrong token for each number; the codes they ended with."""
    left = iter(numbers)
    codes: set[grpc.StatusCode] = set()
    async with grpc.aio.insecure_channel(target.address) as channel:
        call = channel.unary_unary(CALL, request_serializer=None, response_deserializer=None)

        async def go_on() -> None:
            for number in left:
                token = wrong_token(target, number)
                try:
                    await call(REQUEST, metadata=(("authorization", token),), timeout=60)
                    codes.add(grpc.StatusCode.OK)
                except grpc.aio.AioRpcError as error:
                    codes.add(error.code())

        await asyncio.gather(*(go_on() for _ in range(AT_ONCE)))
    return codes


def log_lines(replica_id: str, pid: int) -> dict[Path, list[str]]:
    """What the replica has logged, by file: Serve's log of it, and its process' own output."""
    directory = Path(ray._private.worker._global_node.get_logs_dir_path())
    files = {*directory.rglob(f"*{replica_id}*"), *directory.rglob(f"*{pid}*")}
    ours = (file for file in files if not file.name.startswith(OF_RAYS_CORE))
    return {file: file.read_text(errors="replace").splitlines() for file in ours}


def test_ten_thousand_wrong_tokens(guarded):
    (target,) = targets_of(guarded)
    pid = guarded.options(_by_reference=True).facts.remote().result(timeout_s=30)["pid"]
    process = psutil.Process(pid)
    assert asyncio.run(attack(target, range(WARM_UP))) == {grpc.StatusCode.UNAUTHENTICATED}
    before = decoded(guarded)
    known = log_lines(target.replica_id, pid)
    assert any(known.values())  # the files are found
    begin_bytes, begin_s = process.memory_info().rss, time.monotonic()
    codes = asyncio.run(attack(target, range(CALLS)))
    took_s, grown = time.monotonic() - begin_s, process.memory_info().rss - begin_bytes
    print(f"{CALLS / took_s:.0f} refused/s, {grown / 1024:.0f} KiB more")
    assert codes == {grpc.StatusCode.UNAUTHENTICATED}
    assert grown <= MAX_GROWTH_BYTES
    # Nothing is noted by the attack; asking for `facts` by reference is, in Serve's access log.
    now = log_lines(target.replica_id, pid)
    new = [line for file, lines in now.items() for line in lines[len(known.get(file, ())) :]]
    assert [line for line in new if "facts" not in line] == []
    assert decoded(guarded) == before
    assert guarded.remote("after").result(timeout_s=20) == "after"
