"""Hops: handing functions to the event loop of another thread, as Serve's default flags require.

The time is of both threads together, and of the wake-up between them.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from bench.micro.pair import BATCH
from serve_grpc.mailbox import mailbox_of


@pytest.mark.parametrize("calls", [1, BATCH], ids="{} at once".format)
def test_functions_posted_and_run(cost: Any, calls: int) -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    mailbox = mailbox_of(loop)
    ran: list[int] = []
    all_ran = threading.Event()

    def post() -> None:
        all_ran.clear()
        for number in range(calls):
            mailbox.post(ran.append, number)
        mailbox.post(all_ran.set)
        assert all_ran.wait(10)

    cost(post, part="hops", side="both", calls=calls)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert len(ran) % calls == 0
