"""A pool and mappings of it under any order of events: nothing overlaps, all is counted, all fits.

The machine plays sender and receiver. It knows what was written where, and looks at every payload
that lives after every step: a range that is given twice, or not shown anew, shows at once.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from serve_grpc.shared_memory.mappings import Mappings
from serve_grpc.shared_memory.pool import SegmentPool
from serve_grpc.shared_memory.ranges import Range
from serve_grpc.shared_memory.segments import is_available
from serve_grpc.shared_memory.size_classes import size_class
from tests.fakes.peer_share import PeerShare

KIB = 1024
POOL_BYTES = 3 * 1024 * KIB
SHARE_BYTES = 2 * 1024 * KIB
SEGMENTS = 4

sizes = st.sampled_from([1, 64 * KIB, 64 * KIB + 1, 100_000, 300_000, 700_000, 1024 * KIB])


class Peer:
    """A receiver, and what the sender lets it hold."""

    def __init__(self, pool: SegmentPool) -> None:
        self.released: list[tuple[int, int, int]] = []
        self.mappings = Mappings(1 << 30, lambda *place: self.released.append(place), SEGMENTS)
        self.share = PeerShare(pool, SHARE_BYTES, SEGMENTS)
        self.known: set[int] = set()


class Payload:
    """One that lives: its range, what the peer has of it, and what must be seen there."""

    def __init__(self, peer: Peer, sent: Range, view: memoryview, mark: int) -> None:
        self.peer, self.sent, self.view = peer, sent, view
        self.sent_bytes = bytes([mark]) * sent.size
        self.seen_bytes = self.sent_bytes


class Machine(RuleBasedStateMachine):
    """Payloads are sent to two peers, written to, dropped; peers are lost; time passes."""

    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.mark = 0
        self.closed: list[int] = []
        self.pool = SegmentPool(
            POOL_BYTES, lambda: self.now, self.closed.append, has_room=lambda size: True
        )
        self.peers = [Peer(self.pool), Peer(self.pool)]
        self.payloads: list[Payload] = []
        self.of_lost_peers: list[Payload] = []

    @rule(target=live, size=sizes, number=st.integers(0, 1))
    def send(self, size: int, number: int) -> Payload | None:
        peer = self.peers[number]
        held = peer.share.bytes_held
        sent = peer.share.allocate(size)
        self.tell_closed()
        if sent is None:
            assert peer.share.bytes_held == held
            return None
        assert sent.size == len(sent.view) == size
        self.mark = self.mark % 255 + 1
        sent.view[:] = bytes([self.mark]) * size
        if sent.number not in peer.known:
            peer.known.add(sent.number)
            peer.mappings.add(sent.number, os.dup(sent.fd), sent.segment_bytes)
        view = peer.mappings.take(sent.number, sent.offset, size)
        payload = Payload(peer, sent, view, self.mark)
        self.payloads.append(payload)
        return payload

    @rule(payload=live, part=st.floats(0, 1))
    def write(self, payload: Payload | None, part: float) -> None:
        if payload in self.payloads and payload is not None:
            written = int(len(payload.view) * part)
            payload.view[:written] = bytes(written)
            payload.seen_bytes = bytes(written) + payload.seen_bytes[written:]

    @rule(payload=consumes(live))
    def drop(self, payload: Payload | None) -> None:
        if payload is None or payload not in self.payloads:
            return
        self.payloads.remove(payload)
        payload.view.release()
        peer = payload.peer
        assert peer.released == [(payload.sent.number, payload.sent.offset, payload.sent.size)]
        peer.mappings.settle()
        peer.released.clear()
        assert peer.share.release(payload.sent.number, payload.sent.offset)
        payload.sent.release()  # once more does nothing

    @rule(seconds=st.sampled_from([1.0, 29.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.pool.trim()
        self.tell_closed()

    @rule(number=st.integers(0, 1))
    def lose_peer(self, number: int) -> None:
        lost = self.peers[number]
        lost.share.close()
        lost.mappings.close()
        mine = [payload for payload in self.payloads if payload.peer is lost]
        self.of_lost_peers += mine
        self.payloads = [payload for payload in self.payloads if payload.peer is not lost]
        self.peers[number] = Peer(self.pool)
        self.pool.trim()
        self.tell_closed()

    def tell_closed(self) -> None:
        for number in self.closed:
            for peer in self.peers:
                peer.share.forget_segment(number)
                if number in peer.known:
                    peer.known.discard(number)
                    peer.mappings.remove(number)
        self.closed.clear()

    @invariant()
    def every_payload_is_seen_as_it_was_sent_and_written(self) -> None:
        for payload in self.payloads:
            assert bytes(payload.sent.view) == payload.sent_bytes
        for payload in [*self.payloads, *self.of_lost_peers]:
            assert bytes(payload.view) == payload.seen_bytes

    @invariant()
    def all_is_counted_and_fits(self) -> None:
        now = self.pool.statistics()
        places = [(p.sent.number, p.sent.offset) for p in self.payloads]
        assert len(set(places)) == len(places)
        assert now.bytes_in_use == sum(p.sent.kept.range_bytes for p in self.payloads)
        assert now.bytes_in_use + now.bytes_abandoned <= now.bytes_kept <= POOL_BYTES
        for peer in self.peers:
            mine = [p for p in self.payloads if p.peer is peer]
            assert peer.share.bytes_held == sum(size_class(p.sent.size) for p in mine)
            assert peer.share.bytes_held <= SHARE_BYTES
            assert peer.mappings.live == len(mine)

    def teardown(self) -> None:
        for peer in self.peers:
            peer.share.close()
            peer.mappings.close()
        self.pool.close()
        assert self.pool.statistics().segments == 0


TestPool = pytest.mark.skipif(not is_available(), reason="shared memory is Linux's")(
    Machine.TestCase
)
TestPool.settings = settings(max_examples=100, stateful_step_count=30)
