"""The caller's side of one session, without I/O.

The owner feeds it what arrives (`receive`) and writes what `outbox` holds. Calls are whatever the
owner puts in: this machine only numbers them. Its states and their rules are in `session_state`.
Invariant: a call is in `calls` from `request` until the event that ends it is returned, or until
`cancel` or `close`; each call ends once.
"""

from __future__ import annotations

from typing import Generic

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Drain,
    Error,
    ReplicaBatch,
    Reply,
)
from serve_grpc.payload import Payload, Segments, Stored, joined, with_refs
from serve_grpc.protocol import handshake
from serve_grpc.protocol.assembler import Assembler, PayloadOverflow
from serve_grpc.protocol.caller_handshake import CallerHandshake
from serve_grpc.protocol.envelope import Envelope, RequestFields
from serve_grpc.protocol.flow import GrantedCredit
from serve_grpc.protocol.handshake import STORED, HandshakeRefused
from serve_grpc.protocol.input_items import SentInputs
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.places import LinkMemory
from serve_grpc.protocol.received import CallEvent, CallEventKind, CallT, Received
from serve_grpc.protocol.sent_requests import SentRequests
from serve_grpc.protocol.session_state import SessionLife, SessionState
from serve_grpc.protocol.status import read_error
from serve_grpc.protocol.wire import (
    INLINE_BYTES,
    MAX_FRAMES,
    MAX_STORED_BYTES,
    MAX_UNFINISHED_PAYLOADS,
    Fragment,
    WireError,
    decode_batch,
)

__all__ = [
    "CallEvent",
    "CallEventKind",
    "CallT",
    "CallerSession",
    "Envelope",
    "HandshakeRefused",
    "Received",
    "RequestFields",
]

# Numbers of fields and kinds; looking one up on a generated class takes longer than comparing it.
_REPLIES = ReplicaBatch.REPLIES_FIELD_NUMBER
_REJECTED = ReplicaBatch.REJECTED_FIELD_NUMBER
_REQUESTS_READ = ReplicaBatch.REQUESTS_READ_FIELD_NUMBER
_ONGOING = ReplicaBatch.ONGOING_FIELD_NUMBER
_SLOT_FREE = ReplicaBatch.SLOT_FREE_FIELD_NUMBER
_DRAIN = ReplicaBatch.DRAIN_FIELD_NUMBER
_STANDBY = ReplicaBatch.STANDBY_FIELD_NUMBER
_INPUT_CREDITS = ReplicaBatch.INPUT_CREDITS_FIELD_NUMBER
_RESULT, _ITEM, _ERROR = Reply.RESULT, Reply.ITEM, Reply.ERROR
_REPLY_KINDS = frozenset(Reply.Kind.values())
_HELLO, _PROOF, _OPEN = SessionState.HELLO, SessionState.PROOF, SessionState.OPEN
_DRAINING, _CLOSED = SessionState.DRAINING, SessionState.CLOSED


class CallerSession(SessionLife, Generic[CallT]):
    """State machine of the caller.

    Args:
        replica_id: Unique id of the replica meant.
        secret: The cluster's secret.
        nonce: `NONCE_BYTES` fresh random bytes.
        max_message_bytes: Largest reply payload this side takes.
        takes_stored: Whether payloads may go by Ray's object store.

    Attributes:
        outbox: What is to be written.
        calls: Calls that have not ended, by their id within the session.
        peer_max_message_bytes: Largest request payload that the replica takes; 0 until it said so.
        reads_buffers: Whether the replica reads pickles that are followed by their buffers.
        stores: Whether payloads over the limit go by Ray's object store, as both sides have to say;
            so it holds once the session is open.
        inputs: The streams that are arguments of its calls.
    """

    def __init__(
        self,
        *,
        replica_id: str,
        secret: bytes,
        nonce: bytes,
        max_message_bytes: int,
        takes_stored: bool = False,
    ) -> None:
        super().__init__("caller", replica_id, epoch=0)
        # Only until the session is open: the secret is not kept for longer than it is needed.
        self._handshake: CallerHandshake | None = CallerHandshake(
            replica_id=replica_id,
            secret=secret,
            nonce=nonce,
            max_message_bytes=max_message_bytes,
            takes_stored=takes_stored,
        )
        self._assembler = Assembler(max_message_bytes, MAX_UNFINISHED_PAYLOADS * max_message_bytes)
        self._next_id = 1  # 0 is what an absent field reads as, so the wire has no such id
        self.outbox: Outbox[CallerBatch] = Outbox(CallerBatch)
        self._sent = SentRequests(self.outbox)
        # Looked up once, as both are used for each call.
        self._add_request, self._frames = self._sent.add, self._sent.frames
        self.inputs = SentInputs(self.outbox)
        self._credit = GrantedCredit()
        self.calls: dict[int, CallT] = {}
        self.peer_max_message_bytes = 0
        self.reads_buffers = False
        self.stores = takes_stored
        self._handshake.write_hello(self.outbox.batch.hello)
        self.outbox.added()

    def share(self, memory: LinkMemory) -> None:
        """Use what the link shares beside messages; before the first message leaves."""
        assert self._handshake is not None, "the session is open"
        self._handshake.memory = memory
        self.outbox.batch.hello.features.append(handshake.MEMORY)

    @property
    def requests_read(self) -> int:
        """How many requests the replica has read, by its last word."""
        return self._sent.read

    def __repr__(self) -> str:
        return (
            f"<CallerSession to {self._replica_id} {self.state.value}, {len(self.calls)} calls, "
            f"{self._sent.read} requests read, {self.outbox!r}>"
        )

    # ------------------------------------------------------------ sending

    def request(self, call: CallT, fields: RequestFields) -> int:
        """Queue a request; returns its id within the session.

        Raises:
            IllegalMoveError: The session is not open; nothing was queued.
            ValueError: A text is not valid unicode; nothing was queued.
        """
        if self.state is not _OPEN:
            raise self.illegal("a request")
        # Before anything is queued: protobuf refuses a lone surrogate when the field is set, and
        # half a request in the batch could not be taken back.
        if not (fields.request_id.isascii() and fields.client.isascii()):
            (fields.request_id + fields.client).encode()
        if fields.multiplexed_model_id or fields.session_id:
            (fields.multiplexed_model_id + fields.session_id).encode()
        if fields.inputs:
            "".join(name for _, name in fields.inputs).encode()
            fields.envelope = Envelope(*fields.envelope[:-1], has_inputs=True)
            self.inputs.open(self._next_id, len(fields.inputs))
        call_id = self._next_id
        self._next_id += 1
        self.calls[call_id] = call
        if fields.envelope.stream:
            self._credit.open(call_id, fields.credit_items, fields.credit_bytes)
        payload = fields.payload
        if type(payload) is bytes and len(payload) <= INLINE_BYTES:  # most of them
            self._add_request(call_id, fields, payload)
        elif type(payload) is Segments and payload.stored is not None:
            self._add_request(call_id, fields, b"")
        elif len(payload) <= INLINE_BYTES:
            self._add_request(call_id, fields, joined(payload))
        else:
            # Queued, and counted, behind the last fragment; the replica cannot start it before.
            self.outbox.send_large(
                call_id, payload, then=lambda: self._sent.add(call_id, fields, b"")
            )
        return call_id

    def was_read(self, call_id: int) -> bool:
        """Whether the replica has said that it read the request of a call that is still open."""
        return self._sent.was_read(call_id)

    def cancel(self, call_id: int) -> None:
        """Give a call up; no event of it will follow."""
        # Ended in a closed session as well, or `close` would return the call as a lost one. Sent
        # even if the request has not left: a replica drops what it has of it.
        if self._end(call_id) is None or self.state is _CLOSED:
            return
        self.outbox.batch.cancels.append(call_id)
        self.outbox.added()

    def forget(self, call: CallT) -> None:
        """Give a call up whose id is not at hand."""
        for call_id in [i for i, other in self.calls.items() if other is call]:
            self.cancel(call_id)

    def grant(self, call_id: int, items: int, bytes_: int) -> None:
        """Let the replica send more of a stream; ignored once the call is over."""
        if call_id in self.calls and self.state is not _CLOSED:
            self._credit.grant(call_id, items, bytes_)
            self.outbox.batch.credits.add(id=call_id, items=items, bytes=bytes_)
            self.outbox.added()

    def ping(self, number: int) -> None:
        """Queue a heartbeat, which the replica answers by the same number; not once it is over."""
        if self.state is _CLOSED:
            return
        # One that has not left yet is replaced: the pong of the later one tells as much.
        self.outbox.batch.ping = number
        self.outbox.added()

    # ------------------------------------------------------------ receiving

    def receive(self, data: bytes, received: Received[CallT] | None = None) -> Received[CallT]:
        """Handle one message; one that comes after the end says nothing.

        Args:
            data: As it came.
            received: Where to put what it says. If it raises, that is what came before the error,
                calls that have ended among it.

        Raises:
            WireError: The peer broke the protocol; the session is closed.
            HandshakeRefused: The peer refused the session or is not who it should be; the session
                is closed.
        """
        received = Received() if received is None else received
        if self.state is _CLOSED:
            return received
        try:
            batch, fragments = decode_batch(ReplicaBatch, data, self.outbox.memory)
            if self._handshake is not None:
                self._shake_hands(self._handshake, batch, received)
            else:
                self._read(batch, fragments, received)
        except (WireError, HandshakeRefused) as error:
            # The calls stay in `calls`, for `close` to tell which of them may have started.
            self.move(_CLOSED, str(error))
            raise
        return received

    def _read(
        self,
        batch: ReplicaBatch,
        fragments: list[Fragment],
        received: Received[CallT],
    ) -> None:
        for call_id, part, begun in fragments:  # first, for what owns them may be in this message
            if call_id in self.calls:  # else the late reply of a call that was given up
                self._assembler.add(call_id, part, begun)
        # Only what is there, in the order of the field numbers: looking at each field in turn costs
        # more than decoding a batch of one reply. The order matters: replies come before the drain,
        # so a call that was answered in the same message is not given back by it. A number of 0 is
        # not listed, unless the field is `optional`: 0 is news of `ongoing`, and of no other.
        for field_, value in batch.ListFields():
            number = field_.number
            if number == _REPLIES:
                for reply in value:
                    self._on_reply(reply, received)
            elif number == _REQUESTS_READ:
                self._sent.read = value
            elif number == _ONGOING:
                # What the replica counted when the message left, and our requests that it had not
                # read by then: `requests_read` has a lower number, so it is of this message, too.
                received.load = value + self._sent.queued - self._sent.read
            elif number == _STANDBY:
                received.standby = value
            elif number == _REJECTED:
                if len(value) > MAX_FRAMES:  # they are packed, many in one field
                    raise WireError(f"over {MAX_FRAMES} rejections in one message")
                calls = (self._end(call_id) for call_id in value)
                received.rejected = [call for call in calls if call is not None]
            elif number == _SLOT_FREE:
                received.slot_free = value
            elif number == _DRAIN:
                self._on_drain(value, received)
            elif number == _INPUT_CREDITS:
                received.inputs = self.inputs.news(value, self.calls)

    def _on_drain(self, drain: Drain, received: Received[CallT]) -> None:
        received.draining = True
        is_beyond = self._sent.is_beyond
        for call_id in [i for i in self.calls if is_beyond(i, drain.requests_read)]:
            # The replica promises to start none of them, so they may be sent elsewhere, whatever
            # they do: this is gRPC's GOAWAY with the id of the last stream.
            received.undelivered.append(self.calls[call_id])
            self._end(call_id)
        self.move(_DRAINING)

    def _on_reply(self, reply: Reply, received: Received[CallT]) -> None:
        # proto3 reads a kind that it does not know as a bare number.
        call_id, kind = reply.id, reply.kind
        if kind not in _REPLY_KINDS:
            raise WireError(f"reply of unknown kind {kind}")
        call = self.calls.get(call_id)
        if call is None:
            # The late reply of a call that was given up. What it lends is to be given back.
            if reply.lent:
                received.lent.append((reply.lent, None))
            return
        payload: Payload = b""
        error: Error | None = None
        is_item = kind == _ITEM
        if is_item or kind == _RESULT:
            try:
                # A result may be awaited again, or passed on; an item is taken once.
                payload = self._assembler.take(call_id, reply.payload, is_item)
            except PayloadOverflow as overflow:
                self.cancel(call_id)  # ends a stream that would go on
                event = CallEvent(call, CallEventKind.TOO_LARGE, str(overflow.size).encode(), None)
                received.events.append(event)
                if reply.lent:
                    received.lent.append((reply.lent, None))
                return
            if is_item and not self._credit.spend(call_id, len(payload)):
                # Not this call's fault alone: whoever sends without credit can fill our memory.
                raise WireError(f"an item of call {call_id} without credit")
        elif kind == _ERROR:
            error = read_error(reply, self._assembler)
        if not is_item:
            self._end(call_id)
        if reply.lent:
            kind, payload = self._lent(reply, payload, received)  # type: ignore[assignment]
        received.events.append(CallEvent(call, kind, payload, error))

    def _lent(
        self, reply: Reply, payload: Payload, received: Received[CallT]
    ) -> tuple[int, Payload]:
        """Kind and payload of a reply that names refs, or is itself in Ray's object store."""
        if not reply.HasField("stored"):
            named = with_refs(payload, ())
        elif reply.kind == _RESULT and self.stores and reply.stored.size <= MAX_STORED_BYTES:
            named = Segments((), stored=Stored(reply.stored.size))
        else:  # an item is never stored, and nothing is in a session without the feature
            self.cancel(reply.id)
            received.lent.append((reply.lent, None))
            return CallEventKind.TOO_LARGE, str(reply.stored.size).encode()
        # The event and `received.lent` share this object: its refs are filled in once they are
        # fetched, and who reads the payload finds them.
        received.lent.append((reply.lent, named))
        return reply.kind, named

    def _end(self, call_id: int) -> CallT | None:
        # All that a session keeps of a call; whatever is added to that has to be given up here.
        self._assembler.discard(call_id)
        if self._credit.windows:  # most sessions have none, and this is done for each call
            self._credit.windows.pop(call_id, None)
        if self.inputs.windows:
            self.inputs.close(call_id)
        self.outbox.drop_large(call_id)
        self._frames.pop(call_id, None)
        return self.calls.pop(call_id, None)

    def _shake_hands(
        self, shaking: CallerHandshake, batch: ReplicaBatch, received: Received[CallT]
    ) -> None:
        if batch.HasField("refusal"):
            raise HandshakeRefused(batch.refusal.reason, batch.refusal.message)
        if self.state is _HELLO and batch.HasField("challenge"):
            self.outbox.batch.proof.mac = shaking.prove(batch.challenge)
            self.outbox.added()
            self.epoch = batch.challenge.epoch
            self.move(_PROOF)
        elif self.state is _PROOF and batch.HasField("welcome"):
            self.peer_max_message_bytes = batch.welcome.max_message_bytes
            self.stores = self.stores and STORED in batch.welcome.features
            received.opened = True
            self.reads_buffers = handshake.BUFFERS in batch.welcome.features
            self.inputs.hear(batch.welcome)
            if handshake.MEMORY in batch.welcome.features:
                self.outbox.memory = shaking.memory
            if batch.HasField("ongoing"):
                received.load = batch.ongoing
            self._handshake = None
            self.move(_OPEN)
        else:
            raise WireError(f"unexpected message in state {self.state.value!r}")

    # ------------------------------------------------------------ the end

    def close(self) -> list[tuple[CallT, bool]]:
        """End the session; the second time nothing is left to return.

        Returns:
            The calls it still had, each with whether it may have started.
        """
        self.move(_CLOSED)
        # Before the frames are forgotten: which calls may have started is read off them.
        lost = [(call, self._sent.may_have_started(i)) for i, call in self.calls.items()]
        self.calls.clear()
        self._frames.clear()
        self.inputs.clear()
        return lost
