"""A replica's sessions over links in memory: how many, how they drain, and which dial counts."""

from __future__ import annotations

import asyncio
from typing import Any

from serve_grpc.caller.dialling import Dialler, dialling_by
from serve_grpc.carriers import host as host_module
from serve_grpc.carriers.counters import Counters
from serve_grpc.carriers.host import SessionHost
from serve_grpc.carriers.link import Link
from serve_grpc.carriers.loopback import loopback_dial, pair
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets
from serve_grpc.protocol.caller import HandshakeRefused
from serve_grpc.protocol.handshake import SessionState
from serve_grpc.routing.peer import Peer, ReplicaFacts
from tests.behaviour.serving import Echo
from tests.ray.waiting import eventually_async
from tests.unit.pump_ends import Caller, Replica, run
from tests.unit.sessions import REPLICA_ID, SECRET

# ------------------------------------------------------------ the host


def new_host(echo: Echo | None = None, **settings: Any) -> SessionHost:
    return SessionHost(
        replica_id=REPLICA_ID,
        secrets=ClusterSecrets(lambda: (SECRET,), (SECRET,)),
        settings=Settings(**settings),
        dispatcher=echo or Echo(),
        largest_message=2**20,
    )


def test_a_host_serves_as_many_sessions_as_it_may() -> None:
    async def main() -> None:
        host = new_host(max_connections=2)
        dial = loopback_dial(host.serve)
        callers = [await Caller(dial).opened() for _ in range(2)]
        assert sorted(caller.session.epoch for caller in callers) == [1, 2]
        assert host.sessions == 2
        refused = Caller(dial)
        assert await refused.end() == "SERVE_GRPC_MAX_CONNECTIONS=2 sessions are open"
        callers[0].pump.cancel()
        await eventually_async(lambda: host.sessions == 1)
        await Caller(dial).opened()
        assert host.counters.messages_received >= 6

    run(main())


def test_a_host_tells_how_much_of_each_stream_among_arguments_may_be_sent_ahead() -> None:
    async def main() -> None:
        host = new_host(stream_window_items=7, stream_window_bytes=700)
        caller = await Caller(loopback_dial(host.serve)).opened()
        assert caller.session.inputs.credit == (7, 700)

    run(main())


def test_a_host_that_drains_tells_those_that_are_there_and_refuses_the_others() -> None:
    async def main() -> None:
        host = new_host()
        dial = loopback_dial(host.serve)
        caller = await Caller(dial).opened()
        host.drain()
        await eventually_async(lambda: caller.session.state is SessionState.DRAINING)
        reason = await Caller(dial).end()
        assert isinstance(reason, HandshakeRefused)
        assert "DRAINING" in str(reason)

    run(main())


def test_a_flush_waits_for_what_is_queued_and_not_for_ever() -> None:
    async def main() -> None:
        echo = Echo()
        host = new_host(echo)
        near, far = pair(window=1)

        async def dial(address: str, settings: Settings) -> Link:
            return near

        serving = asyncio.ensure_future(host.serve(far))
        caller = await Caller(dial).opened()
        await host.flush(10)
        far.hold(True)
        for number in range(5):
            caller.ask(f"{number}", bytes(1000))
            await asyncio.sleep(0.01)
        flushing = asyncio.ensure_future(host.flush(10))
        done, _ = await asyncio.wait([flushing], timeout=0.1)
        assert not done
        await host.flush(0.05)
        far.hold(False)
        await flushing
        caller.pump.cancel()
        await asyncio.wait([serving])

    run(main())


def test_the_limit_of_silence_is_never_below_many_heartbeats() -> None:
    async def main() -> tuple[float, float]:
        return (
            new_host(heartbeat_interval_s=0.001)._max_silence_s,
            new_host(heartbeat_interval_s=100.0)._max_silence_s,
        )

    assert asyncio.run(main()) == (
        host_module.MAX_SILENCE_S,
        100 * host_module.SILENT_HEARTBEATS,
    )


# ------------------------------------------------------------ which dial


def test_sessions_are_dialled_as_told_for_a_while() -> None:
    async def main() -> None:
        replica, other = Replica(), Replica()
        # On no node and without a lane: gRPC's, if nobody says otherwise.
        dial_as_told = Dialler(Peer(ReplicaFacts("replica-1", "nowhere:1")), Counters()).dial
        with dialling_by(replica.dial):
            await Caller(dial_as_told).opened()
            with dialling_by(other.dial):
                await Caller(dial_as_told).opened()
            await Caller(dial_as_told).opened()
        assert (len(replica.links), len(other.links)) == (2, 1)

    run(main())
