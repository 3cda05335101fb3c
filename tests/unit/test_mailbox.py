"""Functions to another loop: in order, with one wake-up a burst, and no error stops the others."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve_grpc.mailbox import Mailbox, mailbox_of


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread woke it, and keeps the errors it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.wake_ups = 0
        self.errors: list[BaseException] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context["exception"]))

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.wake_ups += 1
        return super().call_soon_threadsafe(callback, *args, **kwargs)

    def run_what_is_due(self) -> None:
        self.run_until_complete(asyncio.sleep(0))


@pytest.fixture
def loop() -> Iterator[CountingLoop]:
    made = CountingLoop()
    yield made
    made.close()


def test_a_burst_runs_in_order_with_one_wake_up(loop: CountingLoop) -> None:
    mailbox, seen = Mailbox(loop), []
    for number in range(100):
        mailbox.post(seen.append, number)
    assert (loop.wake_ups, seen) == (1, [])
    loop.run_what_is_due()
    assert seen == list(range(100))


def test_a_second_burst_wakes_the_loop_again(loop: CountingLoop) -> None:
    mailbox, seen = Mailbox(loop), []
    for burst in range(3):
        mailbox.post(seen.append, burst)
        mailbox.post(seen.append, burst)
        loop.run_what_is_due()
    assert (loop.wake_ups, seen) == (3, [0, 0, 1, 1, 2, 2])


def test_what_is_posted_while_the_loop_drains_waits_for_the_next_pass(loop: CountingLoop) -> None:
    mailbox, seen = Mailbox(loop), []

    def again() -> None:
        seen.append("first")
        mailbox.post(seen.append, "posted from inside")

    mailbox.post(again)
    mailbox.post(seen.append, "second")
    loop.run_what_is_due()
    loop.run_what_is_due()
    assert seen == ["first", "second", "posted from inside"]
    assert loop.wake_ups == 2


def test_order_is_kept_for_each_of_many_posting_threads(loop: CountingLoop) -> None:
    mailbox, seen = Mailbox(loop), []

    def post_all(poster: int) -> None:
        for number in range(200):
            mailbox.post(seen.append, (poster, number))

    threads = [threading.Thread(target=post_all, args=(poster,)) for poster in range(4)]
    for thread in threads:
        thread.start()
    loop.run_what_is_due()  # some arrive while the loop already drains
    for thread in threads:
        thread.join()
    loop.run_what_is_due()
    for poster in range(4):
        assert [number for p, number in seen if p == poster] == list(range(200))


@pytest.mark.parametrize(
    "error",
    [ValueError("mine"), asyncio.CancelledError(), SystemExit(3), GeneratorExit()],
    ids=repr,
)
def test_an_error_is_told_to_the_loop_and_the_rest_still_runs(
    loop: CountingLoop, error: BaseException
) -> None:
    mailbox, seen = Mailbox(loop), []

    def fail() -> None:
        raise error

    mailbox.post(seen.append, 1)
    mailbox.post(fail)
    mailbox.post(seen.append, 2)
    loop.run_what_is_due()
    loop.run_what_is_due()
    assert seen == [1, 2]
    assert loop.errors == [error]


def test_an_interrupt_leaves_the_loop_and_the_rest_still_runs(loop: CountingLoop) -> None:
    mailbox, seen = Mailbox(loop), []

    def interrupt() -> None:
        raise KeyboardInterrupt

    mailbox.post(interrupt)
    mailbox.post(seen.append, 1)
    with pytest.raises(KeyboardInterrupt):
        loop.run_what_is_due()
    loop.run_what_is_due()
    assert (seen, loop.errors) == ([1], [])


@pytest.mark.parametrize("outer", [Mailbox.post, Mailbox.run, Mailbox.enter])
@pytest.mark.parametrize("error", [None, ValueError("mine")])
def test_no_function_runs_inside_another_one(
    loop: CountingLoop, outer: Callable[..., None], error: Exception | None
) -> None:
    mailbox, seen = Mailbox(loop), []

    def function() -> None:
        seen.append("begins")
        mailbox.run(seen.append, "run from inside, as a finalizer may")
        seen.append("ends")
        if error is not None:
            raise error

    async def main() -> None:
        mailbox.post(lambda: None)
        await asyncio.sleep(0)  # it knows its thread from now on
        try:
            outer(mailbox, function)
        except ValueError:
            assert outer is not Mailbox.post
        for _ in range(3):
            await asyncio.sleep(0)
        mailbox.run(seen.append, "later")

    loop.run_until_complete(main())
    assert seen == ["begins", "ends", "run from inside, as a finalizer may", "later"]


def test_run_is_immediate_on_its_own_loop_once_something_was_posted(loop: CountingLoop) -> None:
    mailbox, seen = Mailbox(loop), []
    mailbox.post(seen.append, "posted")
    loop.run_what_is_due()

    async def main() -> list[str]:
        mailbox.run(seen.append, "now")
        return list(seen)

    assert loop.run_until_complete(main()) == ["posted", "now"]
    assert loop.wake_ups == 1


def test_run_does_not_overtake_what_was_posted_before(loop: CountingLoop) -> None:
    mailbox, seen = Mailbox(loop), []

    async def main() -> None:
        mailbox.post(seen.append, "posted")
        mailbox.run(seen.append, "run")

    loop.run_until_complete(main())
    loop.run_what_is_due()
    assert seen == ["posted", "run"]


def test_run_posts_from_another_loop(loop: CountingLoop) -> None:
    mailbox, seen = Mailbox(loop), []
    mailbox.post(seen.append, "posted")
    loop.run_what_is_due()

    async def main() -> list[str]:
        mailbox.run(seen.append, "later")
        return list(seen)

    assert asyncio.run(main()) == ["posted"]
    loop.run_what_is_due()
    assert seen == ["posted", "later"]


@pytest.mark.parametrize("send", [Mailbox.post, Mailbox.run], ids=["post", "run"])
def test_a_closed_loop_is_told_to_the_poster(send: Callable[..., None]) -> None:
    loop = CountingLoop()
    mailbox, seen = Mailbox(loop), []
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            send(mailbox, seen.append, 1)
    assert seen == []


@pytest.mark.parametrize("send", [Mailbox.post, Mailbox.run], ids=["post", "run"])
def test_a_loop_that_is_gone_runs_nothing(send: Callable[..., None]) -> None:
    loop = CountingLoop()
    mailbox, seen = Mailbox(loop), []
    loop.close()
    del loop
    gc.collect()
    with pytest.raises(RuntimeError, match="closed"):
        send(mailbox, seen.append, 1)
    assert seen == []


def test_a_loop_has_one_mailbox_and_is_not_kept_by_it() -> None:
    loop = CountingLoop()
    mailbox = mailbox_of(loop)
    assert mailbox_of(loop) is mailbox
    assert mailbox.loop is loop
    loop.close()
    del loop
    gc.collect()
    with pytest.raises(RuntimeError, match="closed"):
        _ = mailbox.loop


def test_two_loops_have_two_mailboxes(loop: CountingLoop) -> None:
    other = CountingLoop()
    assert mailbox_of(other) is not mailbox_of(loop)
    other.close()


def test_a_function_does_not_see_the_context_of_whoever_posted_first(loop: CountingLoop) -> None:
    mailbox, seen = Mailbox(loop), []
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")
    own = contextvars.copy_context()
    own.run(variable.set, "of one request")
    own.run(mailbox.post, lambda: seen.append(variable.get()))
    loop.run_what_is_due()
    assert seen == [""]


def test_what_a_timer_runs_is_not_interrupted_either() -> None:
    order: list[str] = []

    async def main() -> None:
        mailbox = mailbox_of(asyncio.get_running_loop())
        done = asyncio.Event()

        def from_within() -> None:
            order.append("from within")
            done.set()

        def timed() -> None:
            mailbox.run(from_within)  # as a finalizer may
            order.append("timed")

        mailbox.call_later(0, timed)
        await done.wait()

    asyncio.run(main())
    assert order == ["timed", "from within"]
