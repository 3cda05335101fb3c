"""The cluster's secret on a Ray of its own: made once, never shown, kept, rotated under load.

`RAY_AUTH_MODE` and the token come from the environment. Prints what was measured as JSON.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
from ray import serve
from ray.experimental import internal_kv

import serve_grpc
from serve_grpc._generated.replica_pb2 import CallRequest, Refusal
from serve_grpc._serve import cluster
from serve_grpc.entrance.secrets import FRESH_S
from tests.peer.plain_client import PlainClient
from tests.peer.session_client import SessionClient
from tests.ray.apps.guarded import Guarded
from tests.ray.scripts import own_ray
from tests.ray.traffic import traffic
from tests.ray.waiting import eventually
from tests.security.endpoints import OPTIONS, targets_of

READERS = 8
UNDER_WAY_S = 1.0
"""So long a read may have been under way when the secret was rotated."""
CALL = CallRequest(request_serializer="orjson", payload=b'[["hi"], {}]')


@ray.remote(num_cpus=0)
class Reader:
    """A process that asks for the secret, and makes calls."""

    def pid(self) -> int:
        return os.getpid()

    def read(self, at_s: float) -> tuple[bytes, ...]:
        """Ask at that time, as all others do."""
        while time.time() < at_s:
            pass
        return cluster.cluster_secrets()

    def call(self, application: str) -> Any:
        """Call it from here; the first time, over a new session."""
        handle = serve_grpc.get_app_handle(application).options(_by_reference=False)
        return handle.remote("z").result(timeout_s=30)


def read_together(readers: list[Any]) -> list[tuple[bytes, ...]]:
    """What each of them reads, at one moment."""
    at_s = time.time() + 1.0
    answers: list[tuple[bytes, ...]] = ray.get(
        [reader.read.remote(at_s) for reader in readers], timeout=60
    )
    return answers


def it_is_made_once() -> None:
    """Many processes that start together, in a cluster that has no secret yet."""
    readers = [Reader.remote() for _ in range(READERS)]
    assert len(set(ray.get([reader.pid.remote() for reader in readers], timeout=120))) == READERS
    for _ in range(3):
        internal_kv._internal_kv_del(cluster._KEY, namespace=cluster._NAMESPACE)
        answers = read_together(readers)
        assert len(set(answers)) == 1, "some read another secret"
        assert [len(secret) for secret in answers[0]] == [32]
    for reader in readers:
        ray.kill(reader)


# ------------------------------------------------------------ calls while it changes


def pids(handle: Any) -> set[int]:
    """The processes that answer."""
    facts = handle.options(method_name="facts")
    return {facts.remote().result(timeout_s=60)["pid"] for _ in range(20)}


def deploy(name: str) -> Any:
    """An application with two replicas; a by-value handle."""
    app = serve_grpc.deployment(**OPTIONS, num_replicas=2, name=name)(Guarded).bind()
    return serve_grpc.run(app, name=name, route_prefix=None).options(_by_reference=False)


def is_member(secret: bytes, target: Any) -> tuple[bool, bool]:
    """Whether a peer with this secret gets a session, and an answer to a plain call."""
    client = SessionClient(target.address, target.replica_id, secret)
    answer = client.hello(key_id=key_id(secret))
    has_session = answer.HasField("challenge") and client.proof(answer).HasField("welcome")
    assert has_session or answer.refusal.reason == Refusal.UNAUTHENTICATED
    client.close()
    plain = PlainClient(target.address, target.replica_id, secret)
    try:
        is_answered = plain.call(CALL).payload == b'"hi"'
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        is_answered = False
    plain.close()
    return has_session, is_answered


def key_id(secret: bytes) -> bytes:
    """As the protocol file has it."""
    return hmac.digest(secret, b"serve_grpc key id", "sha256")[:8]


def it_rotates_under_load(handle: Any) -> dict[str, Any]:
    """Calls go on; sessions that are open stay; those that are new are made with the new one."""
    (old, *_) = cluster.cluster_secrets()
    target = targets_of(handle)[0]
    assert is_member(old, target) == (True, True)
    # They have read the secret now, and will open sessions to `handle`'s replicas later.
    early, late = Reader.remote(), Reader.remote()
    assert ray.get([r.call.remote("others") for r in (early, late)], timeout=60) == ["z", "z"]
    with traffic({"steady": lambda: handle.remote("x")}) as seen:
        serve_grpc.rotate_secret()
        (first, before) = cluster.cluster_secrets()
        assert before == old
        assert first != old
        assert is_member(first, target) == (True, True), "a peer that has read it early"
        assert is_member(old, target) == (True, True), "one that has not read it yet"
        assert ray.get(early.call.remote("steady"), timeout=60) == "z"
        serve_grpc.rotate_secret()
        rotated_s = time.monotonic()
        assert ray.get(late.call.remote("steady"), timeout=60) == "z"
        begin_s = time.monotonic()
        eventually(lambda: is_member(old, target) == (False, False), timeout_s=15)
        took_s = time.monotonic() - begin_s
        assert is_member(first, target) == (True, True)
        assert is_member(cluster.cluster_secret(), target) == (True, True)
        count = len(seen["steady"].answers)
        eventually(lambda: len(seen["steady"].answers) > count + 100)
    # A replica that nobody asked anything since: when what it had read is no longer trusted, the
    # old one is worth nothing there either.
    eventually(lambda: time.monotonic() > rotated_s + FRESH_S + UNDER_WAY_S, timeout_s=15)
    assert [is_member(old, t) for t in targets_of(handle)] == [(False, False)] * 2
    steady = seen["steady"]
    assert steady.errors == []
    return {"worthless_after_s": round(took_s, 2), "calls": len(steady.answers), "failed": 0}


def the_controller_may_die(handle: Any, others: Any) -> None:
    """Old sessions go on, new ones are made, and the secret is the same."""
    before = cluster.cluster_secrets()
    controller = serve.context._global_client._controller
    first = ray.get(controller.get_pid.remote(), timeout=20)
    ray.kill(controller, no_restart=False)
    assert handle.remote("meanwhile").result(timeout_s=30) == "meanwhile"
    assert others.remote("a new session").result(timeout_s=30) == "a new session"
    eventually(lambda: ray.get(controller.get_pid.remote(), timeout=60) != first, timeout_s=60)
    assert cluster.cluster_secrets() == before
    later = deploy("later")
    assert later.remote("later").result(timeout_s=60) == "later"
    assert is_member(before[0], targets_of(later)[0]) == (True, True)


# ------------------------------------------------------------ what shows


def forms(secret: bytes) -> list[bytes]:
    """How it might be written."""
    texts = (secret.hex(), repr(secret)[2:-1], base64.b64encode(secret).decode().rstrip("="))
    return [secret, *(text.encode() for text in texts)]


def places() -> Iterator[tuple[str, bytes]]:
    """All that others can read: logs of the session, command lines and environments."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for file in logs.rglob("*"):
        if file.is_file():
            yield str(file), file.read_bytes()
    for process in psutil.Process().children(recursive=True):
        for name in ("cmdline", "environ"):
            try:
                yield f"{name} of {process}", Path(f"/proc/{process.pid}/{name}").read_bytes()
            except OSError:
                continue  # it has just ended
    yield "our own environment", Path("/proc/self/environ").read_bytes()


def it_shows_nowhere(secrets: set[bytes]) -> int:
    """Returns how many places were searched."""
    stored = internal_kv._internal_kv_get(cluster._KEY, namespace=cluster._NAMESPACE)
    found = {*secrets, *cluster.cluster_secrets(), stored[:32], stored[32:]}
    needles = [form for secret in found for form in forms(secret)]
    searched = 0
    for place, text in places():
        searched += 1
        assert not any(needle in text for needle in needles), place
    return searched


# ------------------------------------------------------------ Ray's token


def the_token_is_needed(handle: Any) -> bool:
    """Where Ray wants its token, the secret alone opens nothing; else it is all there is."""
    stored = internal_kv._internal_kv_get(cluster._KEY, namespace=cluster._NAMESPACE)[:32]
    target = targets_of(handle)[0]
    assert is_member(cluster.cluster_secret(), target) == (True, True)
    token = os.environ.get("RAY_AUTH_TOKEN", "") if os.environ["RAY_AUTH_MODE"] == "token" else ""
    if not token:
        assert cluster.cluster_secret() == stored
        return False
    assert cluster.cluster_secret() == hmac.digest(stored, token.encode(), "sha256")
    wrong = hmac.digest(stored, b"f" * len(token), "sha256")
    assert [is_member(secret, target) for secret in (stored, wrong)] == [(False, False)] * 2
    return True


def main() -> None:
    with own_ray():
        it_is_made_once()
        handle, others = deploy("steady"), deploy("others")
        eventually(lambda: len(pids(handle)) == 2)  # both have sessions
        old = set(cluster.cluster_secrets())
        rotation = it_rotates_under_load(handle)
        old |= set(cluster.cluster_secrets())
        the_controller_may_die(handle, others)
        # Last: made-up keys use up what reads a replica allows, and a member's would wait.
        has_token = the_token_is_needed(handle)
        searched = it_shows_nowhere(old)
    print(json.dumps({"token": has_token, "places": searched, **rotation}))


if __name__ == "__main__":
    main()
