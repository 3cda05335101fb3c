"""The writer of a session: everything queued leaves in order, without waiting for a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.carriers.pump import Writer
from tests.unit.sessions import fields, open_pair


class Queue:
    """An outbox of ready messages, and the transport that takes them."""

    def __init__(self, *messages: bytes) -> None:
        self.messages = list(messages)
        self.written: list[bytes] = []
        self.may_write = asyncio.Event()
        self.may_write.set()

    def __bool__(self) -> bool:
        return bool(self.messages)

    @property
    def queued_bytes(self) -> int:
        return sum(map(len, self.messages))

    def take(self) -> bytes:
        return self.messages.pop(0)

    async def write(self, message: bytes) -> None:
        await self.may_write.wait()
        self.written.append(message)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_what_is_queued_is_written_in_order_and_more_after_a_kick() -> None:
    async def main() -> list[bytes]:
        queue = Queue(b"1", b"2")
        writer = Writer(queue, queue.write)
        writer.kick()  # before it runs: nothing to wake
        task = asyncio.create_task(writer.run())
        await settle()
        queue.messages += [b"3", b"4"]
        writer.kick()
        writer.kick()
        await settle()
        await stop(task)
        return queue.written

    assert asyncio.run(main()) == [b"1", b"2", b"3", b"4"]


def test_what_is_queued_while_a_write_is_on_its_way_needs_no_kick() -> None:
    async def main() -> list[bytes]:
        queue = Queue(b"1")
        queue.may_write.clear()
        task = asyncio.create_task(Writer(queue, queue.write).run())
        await settle()
        queue.messages.append(b"2")
        queue.may_write.set()
        await settle()
        await stop(task)
        return queue.written

    assert asyncio.run(main()) == [b"1", b"2"]


def test_a_broken_stream_ends_the_writer_with_its_error() -> None:
    async def broken(_: bytes) -> None:
        raise ConnectionResetError("gone")

    async def main() -> None:
        await Writer(Queue(b"1"), broken).run()

    with pytest.raises(ConnectionResetError, match="gone"):
        asyncio.run(main())


def test_each_message_of_a_session_is_stamped_as_it_leaves() -> None:
    async def main() -> list[tuple[int, int]]:
        caller, replica = open_pair()
        ids = [caller.request("call", fields()) for _ in range(3)]
        replica.receive(caller.outbox.take())
        for call_id in ids:
            replica.reply(call_id, Reply.RESULT)
            replica.outbox.close_batch()
        loads = iter((3, 2, 1))
        heard: list[tuple[int, int]] = []

        async def write(message: bytes) -> None:
            received = caller.receive(message)
            heard.append((received.load or 0, len(received.events)))

        writer = Writer(replica.outbox, write, lambda: replica.stamp(next(loads)))
        task = asyncio.create_task(writer.run())
        await settle()
        await stop(task)
        return heard

    assert asyncio.run(main()) == [(3, 1), (2, 1), (1, 1)]


def test_waiting_for_room_ends_when_enough_was_written() -> None:
    async def main() -> tuple[list[bool], list[bytes]]:
        queue = Queue(*[b"1234"] * 5)
        queue.may_write.clear()
        writer = Writer(queue, queue.write)
        running = asyncio.create_task(writer.run())
        limits = (100, 12, 4, 0)
        waiting = [asyncio.create_task(writer.wait_below(limit)) for limit in limits]
        await settle()
        before = [task.done() for task in waiting]
        waiting[1].cancel()  # one that stops waiting hinders nobody
        queue.may_write.set()
        await asyncio.gather(waiting[0], waiting[2], waiting[3])
        await stop(running)
        return before, queue.written

    assert asyncio.run(main()) == ([True, False, False, False], [b"1234"] * 5)


@pytest.mark.parametrize("queued", [b"", b"123"])
def test_with_room_nobody_waits(queued: bytes) -> None:
    async def main() -> Callable[[], None]:
        writer = Writer(Queue(queued), Queue().write)
        with pytest.raises(StopIteration):
            writer.wait_below(3).send(None)
        return writer.kick

    assert asyncio.run(main())() is None


def test_a_message_without_company_is_written_at_once_and_wakes_no_task() -> None:
    async def main() -> list[bytes]:
        queue = Queue()
        writer = Writer(queue, queue.write)
        task = asyncio.create_task(writer.run())
        await settle()
        sleeps_on = writer._wake
        assert sleeps_on is not None
        queue.messages.append(b"1")
        writer.kick(at_once=True)
        assert queue.written == [b"1"]
        assert writer._wake is sleeps_on
        assert not sleeps_on.done()
        # The task is there for whatever comes next.
        queue.messages.append(b"2")
        writer.kick()
        await settle()
        await stop(task)
        return queue.written

    assert asyncio.run(main()) == [b"1", b"2"]


def test_who_waits_for_room_goes_on_when_a_message_was_written_at_once() -> None:
    async def main() -> None:
        queue = Queue()
        writer = Writer(queue, queue.write)
        task = asyncio.create_task(writer.run())
        await settle()
        queue.messages.append(b"1")
        waiting = asyncio.create_task(writer.wait_below(0))
        await settle()
        writer.kick(at_once=True)
        await asyncio.wait_for(waiting, 20)
        await stop(task)

    asyncio.run(main())


def test_the_first_item_of_a_turn_leaves_at_once_and_the_others_together() -> None:
    async def main() -> None:
        queue = Queue()
        writer = Writer(queue, queue.write)
        task = asyncio.create_task(writer.run())
        await settle()
        for turn in (1, 2):
            queue.written.clear()
            for item in (b"1", b"2", b"3"):
                queue.messages.append(item)
                writer.kick_item()
            assert queue.written == [b"1"], f"turn {turn}"
            await settle()
            assert queue.written == [b"1", b"2", b"3"]
        await stop(task)

    asyncio.run(main())
