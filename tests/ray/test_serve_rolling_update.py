"""A rolling update of as many replicas as a test can start, while a caller goes on calling.

The caller's subset is about half of them. Replicas are called over gRPC, as between nodes.
Run it with `-rP` to see how long calls took.
"""

from __future__ import annotations

import contextlib
import threading
from statistics import median, quantiles

import pytest

import serve_grpc
from serve_grpc.carriers.grpc import dial
from serve_grpc.carriers.local import dial as local_dial
from serve_grpc.config import settings
from tests.ray.apps.rolling import ITEMS, Versioned
from tests.ray.carriers import options_over
from tests.ray.listing import infos_of
from tests.ray.look_ups import counted_look_ups
from tests.ray.traffic import traffic
from tests.ray.waiting import eventually

REPLICAS = 40
AT_ONCE = REPLICAS // 5
"""Replicas that Serve replaces together: `rolling_update_percentage` is 0.2."""
CALLERS = 4
"""Of each kind. Together they want no larger subset: an eighth of its slots is enough for them."""
OPTIONS = {
    "num_replicas": REPLICAS,
    "max_ongoing_requests": 5,
    "ray_actor_options": {"num_cpus": 0.01},
    "graceful_shutdown_wait_loop_s": 0.1,
}
DEPLOYMENT = serve_grpc.deployment(**options_over("grpc", OPTIONS))(Versioned)
BEFORE = 500
"""Quick calls before the update."""
LOOK_S = 0.1


def calls_of(handle):
    """By kind, what makes one call; the answer is a list of items."""

    async def one(method):
        return [await handle.options(method_name=method).remote()]

    async def stream():
        return [item async for item in handle.options(method_name="stream", stream=True).remote()]

    return {"quick": lambda: one("quick"), "slow": lambda: one("slow"), "stream": stream}


def replica_ids(handle):
    return {info.replica_id.unique_id for info in infos_of(handle)}


def sessions_of(handle):
    """How many the caller has with replicas that are listed."""
    replicas = serve_grpc.handle_statistics(handle).replicas
    return sum(replica.state != "idle" for replica in replicas)


def open_links():
    """Of this process, those to retired replicas included."""
    return len(dial.open_links()) + len(local_dial.open_links())


@contextlib.contextmanager
def followed_sessions(handle):
    """Gives a list that gets the number of `sessions_of` every moment."""
    numbers, is_over = [], threading.Event()

    def follow():
        while not is_over.wait(LOOK_S):
            numbers.append(sessions_of(handle))

    thread = threading.Thread(target=follow, name="followed sessions")
    thread.start()
    try:
        yield numbers
    finally:
        is_over.set()
        thread.join()


class Update:
    """What was seen of it.

    Attributes:
        handle: The caller's.
        links: That were open before there was a deployment.
        look_ups: By this process.
        old: Ids of the replicas that there were.
        before: By kind, how many calls were answered before it began.
        seen: By kind, what became of all calls.
        sessions: How many there were, moment by moment.
    """

    def __init__(self, deploy, look_ups):
        self.links, self.look_ups = open_links(), look_ups
        self.handle = deploy(DEPLOYMENT.bind("1"), "rolling-update")
        self.handle.quick.remote().result(timeout_s=60)
        self.old = replica_ids(self.handle)
        with (
            followed_sessions(self.handle) as self.sessions,
            traffic(calls_of(self.handle), callers=CALLERS) as self.seen,
        ):
            self.go_on()

    def go_on(self):
        eventually(lambda: len(self.seen["quick"].answers) >= BEFORE, timeout_s=60)
        self.before = {kind: len(of.answers) for kind, of in self.seen.items()}
        serve_grpc.run(DEPLOYMENT.bind("2"), name=self.handle.app_name, route_prefix=None)
        for of in self.seen.values():
            of.wait_for(lambda answer: versions_of([answer]) == {"2"})

    def tell(self):
        """Print the figures."""
        for kind, of in self.seen.items():
            was, then = of.took_s[: self.before[kind]], of.took_s[self.before[kind] :]
            print(f"{kind}: before {figures(was)}; during {figures(then)}")
        print(f"sessions: {median(self.sessions)}, {min(self.sessions)} to {max(self.sessions)}")
        statistics = serve_grpc.handle_statistics(self.handle)
        print(f"rejections: {statistics.rejections}, retries: {statistics.retries}")


def figures(took_s):
    p99_ms = quantiles(took_s, n=100, method="inclusive")[98] * 1000
    return f"{len(took_s)} calls, p99 {p99_ms:.0f} ms, most {max(took_s) * 1000:.0f} ms"


def versions_of(answers):
    return {item[0] for answer in answers for item in answer}


@pytest.fixture(scope="module")
def update(deploy):
    with pytest.MonkeyPatch.context() as patch:
        update = Update(deploy, counted_look_ups(patch))
        update.tell()
        yield update


def test_every_call_is_answered(update):
    assert {kind: of.errors for kind, of in update.seen.items()} == {k: [] for k in update.seen}


def test_the_answers_come_from_the_old_version_then_from_the_new_one(update):
    for kind, of in update.seen.items():
        assert versions_of(of.answers[: update.before[kind]]) == {"1"}
        assert versions_of(of.answers) == {"1", "2"}
    new = replica_ids(update.handle)
    assert len(new) == len(update.old) == REPLICAS
    assert not new & update.old


def test_a_stream_that_was_begun_comes_from_one_replica_to_its_end(update):
    for items in update.seen["stream"].answers:
        assert len(items) == ITEMS
        assert len(set(items)) == 1


def test_no_actor_is_looked_up(update):
    assert update.look_ups.replicas == []


def test_the_caller_keeps_sessions_to_its_subset(update):
    # Whoever of them is about to go has another in its place.
    assert median(update.sessions) <= settings.subset_size + AT_ONCE
    assert max(update.sessions) < REPLICAS
    held = lambda: sessions_of(update.handle)  # noqa: E731
    eventually(lambda: settings.subset_size / 2 < held() <= settings.subset_size, timeout_s=60)


def test_sessions_to_replicas_that_went_are_closed(update):
    eventually(lambda: open_links() - update.links <= sessions_of(update.handle))
