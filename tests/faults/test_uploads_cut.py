"""Row 23: connections that are cut, again and again, under many uploads at a time."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from serve_grpc.carriers.local.dial import open_links
from tests.faults.checker import NOTHING_WRONG, check
from tests.faults.load import Load, calling
from tests.faults.slots import has_all_slots
from tests.faults.tcp_proxy import proxied
from tests.faults.test_uploads_lost import NAMES, ROW, WAYS
from tests.ray.apps.fed import FED, Feed, upload
from tests.ray.carriers import carriers_of, options_over
from tests.ray.waiting import eventually

AT_ONCE, SLOTS = 200, 300
NUMBER, PAUSE_S = 20, 0.02
CUTS, LATER_S = 6, 0.1


@contextmanager
def cutting(carrier: str) -> Iterator[Callable[[], int]]:
    """Gives what cuts the sessions that were opened meanwhile, and returns how many there were."""
    if carrier == "local":
        yield cut_lanes
        return
    with proxied() as network:
        yield lambda: sum(proxy.cut() for proxy in tuple(network.proxies.values()))


def cut_lanes() -> int:
    """Shut the sockets of all lanes that this process has dialled."""
    links = open_links()
    for link in links:
        with socket.socket(fileno=os.dup(link._sock.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)
    return len(links)


def wait_for_complete(load: Load, more: int) -> None:
    """Return when so many more uploads have come to their end."""

    def complete() -> int:
        return sum(outcome.kind == "ok" for outcome in load.outcomes)

    enough = complete() + more
    eventually(lambda: complete() >= enough, timeout_s=60)


@pytest.mark.timeout(180)
def test_two_hundred_uploads_with_cuts_in_between(deploy, board, callers, measured, carrier):
    options = {"ray_actor_options": {"num_cpus": 0.01}, "max_ongoing_requests": SLOTS}
    app = FED.options(**options_over(carrier, options)).bind()
    feeds: dict[str, Feed] = {}
    with cutting(carrier) as cut:
        handle = deploy(app, f"uploads-cut-{carrier}")
        handle.pid.remote().result(timeout_s=60)
        assert carriers_of(handle) == [carrier]

        def make(name: str) -> object:
            feeds[name] = Feed(name, NUMBER, PAUSE_S)
            of_kind, to_kind = WAYS[len(feeds) % len(WAYS)]
            return upload(handle, board.path, feeds[name], of_kind, to_kind)

        with calling(callers, make, in_flight=AT_ONCE) as load:
            for _ in range(CUTS):
                wait_for_complete(load, AT_ONCE)
                time.sleep(LATER_S)  # in the midst of those that have begun since
                assert cut() >= 1
            wait_for_complete(load, AT_ONCE)
        is_whole = has_all_slots(handle, board, callers, SLOTS)
        handle.shutdown()
    eventually(lambda: not [t for t in threading.enumerate() if "serve_grpc-input" in t.name])
    eventually(lambda: all(feed.is_over for feed in feeds.values()))
    wrong = check(board, load.outcomes, items=NUMBER)
    closes = Counter(len(feed.ends) for feed in feeds.values() if feed.ends or feed.made)
    kinds = Counter(outcome.kind for outcome in load.outcomes)
    fault = f"{AT_ONCE} uploads at a time, {CUTS} cuts; over {NAMES[carrier]}"
    measured(ROW, fault, "outcomes", "none wrong", dict(kinds))
    measured(ROW, fault, "wrong", "0", wrong.counts())
    measured(ROW, fault, "handlers that saw an end too early", "0", board.count("short"))
    measured(ROW, fault, "generators closed other than once", "0", closes.total() - closes[1])
    measured(ROW, fault, "slots leaked", "0", 0 if is_whole else "some")
    assert wrong == NOTHING_WRONG
    assert board.count("short") == 0
    assert kinds["unknown"] > 0
    assert kinds["ok"] > 0
    assert set(closes) == {1}
    assert is_whole
