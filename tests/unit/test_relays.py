"""Streams that are handed on: unopened where that can be, and no faster than they may leave."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest

from serve_grpc._generated.replica_pb2 import Error
from serve_grpc._serve.exceptions import RemoteException
from serve_grpc.caller.item_writer import Entry, ItemWriter, Terms
from serve_grpc.caller.lending import Borrowed
from serve_grpc.caller.outcomes import Raised, Result, UserException, Value
from serve_grpc.caller.relays import InboxItems, Relay, ResponseItems
from serve_grpc.errors import ReplicaDiedError
from serve_grpc.payload import Segments, refs_of
from serve_grpc.protocol.caller import Envelope
from serve_grpc.protocol.input_items import InputKind
from serve_grpc.response import ByValueResponseGenerator
from serve_grpc.serialization import get_serializer
from serve_grpc.threads import THREAD_NAME
from tests.ray.waiting import eventually_async
from tests.unit.inboxes import Fed
from tests.unit.sessions_loop import TransportLoop

TERMS = Terms(100, 10_000, 1000, True)


class Unloadable:
    """Pickles, and never comes back."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise AssertionError("it was loaded")


class WhereLoaded:
    """Unpickles to the name of the thread that does so."""

    def __reduce__(self) -> Any:
        return _thread_name, ()


def _thread_name() -> str:
    return threading.current_thread().name


class Chain:
    """The response of one call, handed on as an input of another."""

    def __init__(
        self, transport: TransportLoop, wrote: str = "cloudpickle", writes: str = "pickle"
    ) -> None:
        envelope = Envelope("work", wrote, wrote, True, "/", "app")
        self.transport = transport
        self.call = transport.new_call(envelope, response_loads=get_serializer(wrote).load_response)
        self.response: Any = ByValueResponseGenerator(self.call)
        writer = ItemWriter(get_serializer(writes), None, "words")
        self.relay = Relay(ResponseItems(self.call, self.response.close), writer)
        self.made: list[Entry] = []

    def start(self, terms: Terms = TERMS) -> None:
        self.relay.start(self.made.extend, terms)

    def add(self, *payloads: Any) -> None:
        for payload in payloads:
            self.transport.run(self.call.add_item, payload)

    def end(self, outcome: Any = None) -> None:
        self.transport.run(self.call.end, outcome or Result(b""))

    async def last(self) -> Entry:
        """The end, once it is there."""
        await eventually_async(lambda: self.made and self.made[-1].kind is not InputKind.ITEM)
        return self.made[-1]

    @property
    def payloads(self) -> list[Any]:
        return [entry.payload for entry in self.made if entry.kind is InputKind.ITEM]


def test_items_go_on_as_they_came(transport: TransportLoop) -> None:
    async def main() -> None:
        chain = Chain(transport)
        items = [pickle.dumps(Unloadable()), pickle.dumps(2), Segments([b"in ", b"pieces"])]
        chain.add(items[0])
        chain.start()
        chain.add(*items[1:])
        chain.end()
        assert (await chain.last()).kind is InputKind.END
        assert chain.payloads[:2] == items[:2]
        assert list(chain.payloads[2].parts) == [b"in ", b"pieces"]

    asyncio.run(main())


@pytest.mark.parametrize("name", ["msgpack", "orjson", "noop"])
def test_items_of_another_serializer_go_on_as_they_came(
    transport: TransportLoop, name: str
) -> None:
    async def main() -> None:
        chain = Chain(transport, name, name)
        chain.start()
        chain.add(b"no bytes of any serializer \xff")
        chain.end()
        await chain.last()
        assert chain.payloads == [b"no bytes of any serializer \xff"]

    asyncio.run(main())


def test_where_serializers_differ_items_are_loaded_in_a_thread(transport: TransportLoop) -> None:
    async def main() -> None:
        chain = Chain(transport, "pickle", "msgpack")
        chain.start()
        chain.add(pickle.dumps(WhereLoaded()), Value("a value of Serve's own transport"))
        chain.end()
        await chain.last()
        first, second = map(get_serializer("msgpack").load_item, chain.payloads)
        assert first.startswith(THREAD_NAME)
        assert second == "a value of Serve's own transport"

    asyncio.run(main())


def test_an_item_that_cannot_be_opened_ends_the_input_and_the_first_call(
    transport: TransportLoop,
) -> None:
    async def main() -> None:
        chain = Chain(transport, "pickle", "msgpack")
        chain.start()
        chain.add(pickle.dumps(Unloadable()))
        last = await chain.last()
        assert last.error is not None
        assert last.error.code == Error.SERIALIZATION
        await eventually_async(lambda: transport.cancelled == [chain.call])

    asyncio.run(main())


def test_an_item_over_the_limit_of_the_next_replica_ends_the_input(
    transport: TransportLoop,
) -> None:
    async def main() -> None:
        chain = Chain(transport)
        chain.start(TERMS._replace(max_message_bytes=10))
        chain.add(b"x" * 11)
        last = await chain.last()
        assert last.error is not None
        assert (last.error.code, last.error.size) == (Error.MESSAGE_TOO_LARGE, 11)

    asyncio.run(main())


def test_credit_goes_upstream_when_items_may_leave(transport: TransportLoop) -> None:
    async def main() -> None:
        chain = Chain(transport)  # its window is of four items, so every second gives credit
        chain.start(TERMS._replace(items=1))
        chain.add(b"1", b"2", b"3", b"4")
        await eventually_async(lambda: chain.made)
        transport.run(lambda: None)
        assert (chain.payloads, transport.grants) == ([b"1"], [])
        chain.relay.grant(1, 0)
        await eventually_async(lambda: transport.grants)
        assert (chain.payloads, transport.grants) == ([b"1", b"2"], [(2, 2)])
        chain.relay.stop()
        await eventually_async(lambda: transport.cancelled)
        assert transport.grants == [(2, 2)]
        chain.relay.stop()
        assert transport.cancelled == [chain.call]

    asyncio.run(main())


def test_a_relay_that_is_never_started_gives_the_first_call_up(transport: TransportLoop) -> None:
    chain = Chain(transport)
    chain.relay.stop()
    transport.run(lambda: None)
    assert transport.cancelled == [chain.call]


def told(**fields: Any) -> Error:
    pickled = pickle.dumps(Unloadable())
    return Error(code=Error.USER_EXCEPTION, message="why", pickled=pickled, **fields)


@pytest.mark.parametrize("may_pickle", [True, False])
def test_the_users_exception_goes_on_unopened(transport: TransportLoop, may_pickle: bool) -> None:
    async def main() -> None:
        chain = Chain(transport)
        remote = RemoteException(told(), request_id="a", may_unpickle=True, refs=["a ref"])
        chain.start(TERMS._replace(may_pickle=may_pickle))
        chain.end(UserException(remote))
        last = await chain.last()
        assert last.error is not None
        assert last.error.message == "why"
        assert bool(last.error.pickled) is may_pickle
        assert list(refs_of(last.payload)) == ["a ref"]
        assert told().pickled  # and the first call's own was not changed
        assert remote.as_told()[0].pickled

    asyncio.run(main())


def test_an_error_of_ours_goes_on(transport: TransportLoop) -> None:
    async def main() -> None:
        chain = Chain(transport)
        chain.start()
        chain.add(b"1")
        chain.end(Raised(ReplicaDiedError("lost", request_id="a")))
        last = await chain.last()
        assert last.error is not None
        assert isinstance(pickle.loads(last.error.pickled), ReplicaDiedError)
        assert chain.payloads == [b"1"]

    asyncio.run(main())


def test_refs_that_are_not_here_yet_are_waited_for(transport: TransportLoop) -> None:
    async def main() -> None:
        chain = Chain(transport)
        borrowed = Borrowed()
        chain.start()
        chain.add(Segments([b"names refs"], borrowed), b"2")
        await asyncio.sleep(0.05)  # time for what must not happen
        assert chain.made == []
        borrowed.append("a ref")
        borrowed.fetched.set_result(None)
        await eventually_async(lambda: len(chain.made) == 2)
        assert list(refs_of(chain.payloads[0])) == ["a ref"]
        chain.relay.stop()

    asyncio.run(main())


# ------------------------------------------------------------ a stream of the request itself


def inbox_relay(fed: Fed) -> Relay:
    return Relay(InboxItems(fed.inbox), ItemWriter(get_serializer("pickle"), None, "words"))


def test_a_requests_own_stream_goes_on_as_it_came() -> None:
    async def main() -> None:
        fed, made = Fed(), []
        relay = inbox_relay(fed)
        relay.start(made.extend, TERMS)
        payloads = [pickle.dumps(Unloadable()), pickle.dumps(2)]
        for payload in payloads:
            fed.feed_payload(payload)
        fed.end()
        await eventually_async(lambda: len(made) == 3)
        assert [entry.payload for entry in made] == [*payloads, b""]
        assert fed.told[0] == (2, sum(map(len, payloads)), False)

    asyncio.run(main())


def test_what_may_name_refs_is_opened() -> None:
    async def main() -> None:
        fed, made = Fed(), []
        relay = inbox_relay(fed)
        relay.start(made.extend, TERMS)
        fed.feed(("ray._private.serialization", WhereLoaded()))
        await eventually_async(lambda: made)
        _, where = pickle.loads(made[0].payload)
        assert where.startswith(THREAD_NAME)
        relay.stop()
        await eventually_async(lambda: fed.is_closed)

    asyncio.run(main())


def test_the_error_of_a_requests_own_stream_goes_on() -> None:
    async def main() -> None:
        fed, made = Fed(), []
        inbox_relay(fed).start(made.extend, TERMS)
        fed.feed(1)
        fed.fail("why")
        await eventually_async(lambda: len(made) == 2)
        assert made[1].error.message == "why"

    asyncio.run(main())


@pytest.mark.parametrize("is_started", [True, False])
def test_a_requests_own_stream_is_closed_when_no_more_is_wanted(is_started: bool) -> None:
    async def main() -> None:
        fed = Fed()
        relay = inbox_relay(fed)
        if is_started:
            relay.start(lambda entries: None, TERMS)
            await asyncio.sleep(0)
        relay.stop()
        await eventually_async(lambda: fed.is_closed)

    asyncio.run(main())
