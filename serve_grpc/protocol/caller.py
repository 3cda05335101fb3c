"""The caller's side of one session, without I/O.

The owner feeds it what arrives (`receive`) and writes what `outbox` holds. Calls are whatever the
owner puts in: this machine only numbers them. Invariant: a call is in `calls` from `request` until
the event that ends it is returned, or until `forget`; each call ends once.
"""

from __future__ import annotations

from typing import Generic

from google.protobuf.message import DecodeError

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Drain,
    Error,
    Refusal,
    ReplicaBatch,
    Reply,
)
from serve_grpc.payload import Payload, joined, with_refs
from serve_grpc.protocol import handshake
from serve_grpc.protocol.envelope import Envelope, RequestFields
from serve_grpc.protocol.flow import GrantedCredit
from serve_grpc.protocol.handshake import SessionState
from serve_grpc.protocol.keyring import key_id
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.received import CallEvent, CallEventKind, CallT, Received
from serve_grpc.protocol.wire import (
    INLINE_BYTES,
    MAX_FRAMES,
    MAX_TEMPLATES,
    MAX_UNFINISHED_PAYLOADS,
    Assembler,
    PayloadOverflow,
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
_RESULT, _ITEM, _ERROR = Reply.RESULT, Reply.ITEM, Reply.ERROR
_REPLY_KINDS = frozenset(Reply.Kind.values())


class HandshakeRefused(Exception):
    """The peer refused the session, or failed to prove itself."""

    def __init__(self, reason: Refusal.Reason, message: str) -> None:
        known = Refusal.Reason.values()
        name = Refusal.Reason.Name(reason) if reason in known else f"reason {reason}"
        super().__init__(f"{name}: {message}")
        self.reason = reason


class CallerSession(Generic[CallT]):
    """State machine of the caller.

    Args:
        replica_id: Unique id of the replica meant.
        secret: The cluster's secret.
        nonce: `NONCE_BYTES` fresh random bytes.
        max_message_bytes: Largest reply payload this side takes.
    """

    def __init__(
        self, *, replica_id: str, secret: bytes, nonce: bytes, max_message_bytes: int
    ) -> None:
        self._replica_id = replica_id
        self._secret = secret
        self._nonce = nonce
        self._max_message_bytes = max_message_bytes
        self._assembler = Assembler(max_message_bytes, MAX_UNFINISHED_PAYLOADS * max_message_bytes)
        self._templates: dict[Envelope, int] = {}
        self._last_template: tuple[Envelope | None, int] = (None, 0)
        self._next_template = 0
        self._next_id = 1
        # Of each call whose request frame was queued: which one it is, and in which message.
        self._queued: dict[int, tuple[int, int]] = {}
        self._credit = GrantedCredit()
        self._requests_queued = 0
        self.state = SessionState.HELLO
        self.outbox: Outbox[CallerBatch] = Outbox(CallerBatch)
        self.calls: dict[int, CallT] = {}
        self.epoch = 0
        self.requests_read = 0
        self.peer_max_message_bytes = 0
        hello = self.outbox.batch.hello
        hello.min_version, hello.max_version = handshake.MIN_VERSION, handshake.MAX_VERSION
        hello.replica_id, hello.nonce, hello.key_id = replica_id, nonce, key_id(secret)
        hello.features.append(handshake.LENT)
        self.outbox.added()

    def __repr__(self) -> str:
        return (
            f"<CallerSession to {self._replica_id} {self.state.value}, {len(self.calls)} calls, "
            f"{self.requests_read} requests read, {self.outbox!r}>"
        )

    # ------------------------------------------------------------ sending

    def request(self, call: CallT, fields: RequestFields) -> int:
        """Queue a request; returns its id within the session.

        Raises:
            ValueError: A text is not valid unicode; nothing was queued.
        """
        assert self.state is SessionState.OPEN, self.state
        # Before anything is queued: half a request in the batch could not be taken back.
        if not (fields.request_id.isascii() and fields.client.isascii()):
            (fields.request_id + fields.client).encode()
        if fields.multiplexed_model_id or fields.session_id:
            (fields.multiplexed_model_id + fields.session_id).encode()
        call_id = self._next_id
        self._next_id += 1
        self.calls[call_id] = call
        if fields.envelope.stream:
            self._credit.open(call_id, fields.credit_items, fields.credit_bytes)
        payload = fields.payload
        if len(payload) <= INLINE_BYTES:
            self._add_request(call_id, fields, joined(payload))
        else:
            self.outbox.send_large(
                call_id, payload, then=lambda: self._add_request(call_id, fields, b"")
            )
        return call_id

    def _add_request(self, call_id: int, fields: RequestFields, payload: bytes) -> None:
        outbox, envelope = self.outbox, fields.envelope
        last, template = self._last_template
        if envelope is not last:
            template = self._template(envelope)
        request = outbox.batch.requests.add(
            id=call_id, template=template, request_id=fields.request_id, payload=payload
        )
        if fields.timeout_ms:
            request.timeout_ms = fields.timeout_ms
        if envelope.stream:
            request.credit_items = fields.credit_items
            request.credit_bytes = fields.credit_bytes
        if fields.multiplexed_model_id:
            request.multiplexed_model_id = fields.multiplexed_model_id
        if fields.session_id:
            request.session_id = fields.session_id
        if fields.client:
            request.client = fields.client
        if fields.reserved_slot:
            request.reserved_slot = fields.reserved_slot
        size = len(payload)
        if fields.context is not None:
            request.context.CopyFrom(fields.context)
            size += fields.context.ByteSize()
        self._requests_queued += 1
        self._queued[call_id] = self._requests_queued, outbox.pending_batch
        outbox.added(size)

    def _template(self, envelope: Envelope) -> int:
        number = self._templates.get(envelope)
        if number is None:
            if len(self._templates) >= MAX_TEMPLATES:
                self._templates.clear()
                self._next_template = 0
                # A batch's templates are read before its requests, so the old meanings go first.
                self.outbox.close_batch()
            self._next_template += 1
            number = self._templates[envelope] = self._next_template
            self.outbox.batch.templates.add(number=number, **envelope._asdict())
        self._last_template = envelope, number
        return number

    def was_read(self, call_id: int) -> bool:
        """Whether the replica has said that it read the request of a call that is still open."""
        queued = self._queued.get(call_id)
        return queued is not None and queued[0] <= self.requests_read

    def cancel(self, call_id: int) -> None:
        """Give a call up; no event of it will follow."""
        if self._end(call_id) is None:
            return
        self.outbox.batch.cancels.append(call_id)
        self.outbox.added()

    def forget(self, call: CallT) -> None:
        """Give a call up whose id is not at hand."""
        for call_id in [i for i, other in self.calls.items() if other is call]:
            self.cancel(call_id)

    def grant(self, call_id: int, items: int, bytes_: int) -> None:
        """Let the replica send more of a stream; ignored once the call is over."""
        if call_id in self.calls:
            self._credit.grant(call_id, items, bytes_)
            self.outbox.batch.credits.add(id=call_id, items=items, bytes=bytes_)
            self.outbox.added()

    def ping(self, number: int) -> None:
        """Queue a heartbeat."""
        self.outbox.batch.ping = number
        self.outbox.added()

    # ------------------------------------------------------------ receiving

    def receive(self, data: bytes, received: Received[CallT] | None = None) -> Received[CallT]:
        """Handle one message.

        Args:
            data: As it came.
            received: Where to put what it says. If it raises, that is what came before the error,
                calls that have ended among it.

        Raises:
            WireError: The peer broke the protocol; the session is over.
            HandshakeRefused: The peer refused the session or is not who it should be.
        """
        received = Received() if received is None else received
        batch, fragments = decode_batch(ReplicaBatch, data)
        if self.state in (SessionState.HELLO, SessionState.PROOF):
            self._handshake(batch, received)
            return received
        for call_id, part in fragments:
            if call_id in self.calls:  # else the late reply of a call that was given up
                self._assembler.add(call_id, part)
        # Only what is there, in the order of the field numbers: looking at each field in turn costs
        # more than decoding a batch of one reply.
        for field_, value in batch.ListFields():
            number = field_.number
            if number == _REPLIES:
                for reply in value:
                    self._on_reply(reply, received)
            elif number == _REQUESTS_READ:
                self.requests_read = value
            elif number == _ONGOING:
                received.load = value + self._requests_queued - self.requests_read
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
        return received

    def _on_drain(self, drain: Drain, received: Received[CallT]) -> None:
        self.state = SessionState.DRAINING
        received.draining = True
        for call_id in self._beyond(drain.requests_read):
            received.undelivered.append(self.calls[call_id])
            self._end(call_id)

    def _on_reply(self, reply: Reply, received: Received[CallT]) -> None:
        call_id, kind = reply.id, reply.kind
        if kind not in _REPLY_KINDS:
            raise WireError(f"reply of unknown kind {kind}")
        call = self.calls.get(call_id)
        if call is None:
            if reply.lent:
                received.lent.append((reply.lent, None))
            return
        payload: Payload = b""
        error: Error | None = None
        if kind in (_RESULT, _ITEM):
            try:
                payload = self._assembler.take(call_id, reply.payload)
            except PayloadOverflow as overflow:
                self.cancel(call_id)  # ends a stream that would go on
                event = CallEvent(call, CallEventKind.TOO_LARGE, str(overflow.size).encode(), None)
                received.events.append(event)
                if reply.lent:
                    received.lent.append((reply.lent, None))
                return
            if kind == _ITEM and not self._credit.spend(call_id, len(payload)):
                raise WireError(f"an item of call {call_id} without credit")
        elif kind == _ERROR:
            error = reply.error if reply.HasField("error") else self._large_error(call_id, reply)
        if kind != _ITEM:
            self._end(call_id)
        if reply.lent:
            payload = with_refs(payload, ())
            received.lent.append((reply.lent, payload))
        received.events.append(CallEvent(call, kind, payload, error))

    def _large_error(self, call_id: int, reply: Reply) -> Error:
        try:
            large: Error = Error.FromString(joined(self._assembler.take(call_id, reply.payload)))
            return large
        except (DecodeError, PayloadOverflow) as reason:
            text = f"the replica's error cannot be read: {reason!r}"
            return Error(message=text, may_have_executed=True)

    def _beyond(self, requests_read: int) -> list[int]:
        """Ids of the calls whose request is not among the first ones."""
        queued = self._queued
        return [i for i in self.calls if i not in queued or queued[i][0] > requests_read]

    def _end(self, call_id: int) -> CallT | None:
        self._assembler.discard(call_id)
        self._credit.close(call_id)
        self.outbox.drop_large(call_id)
        self._queued.pop(call_id, None)
        return self.calls.pop(call_id, None)

    def _handshake(self, batch: ReplicaBatch, received: Received[CallT]) -> None:
        if batch.HasField("refusal"):
            self.state = SessionState.CLOSED
            raise HandshakeRefused(batch.refusal.reason, batch.refusal.message)
        if self.state is SessionState.HELLO and batch.HasField("challenge"):
            self._answer(batch)
        elif self.state is SessionState.PROOF and batch.HasField("welcome"):
            self.state = SessionState.OPEN
            self.peer_max_message_bytes = batch.welcome.max_message_bytes
            received.opened = True
            if batch.HasField("ongoing"):
                received.load = batch.ongoing
        else:
            raise WireError(f"unexpected message in state {self.state.value!r}")

    def _answer(self, batch: ReplicaBatch) -> None:
        challenge = batch.challenge
        signed = (self._nonce, challenge.nonce, self._replica_id, challenge.epoch)
        if not handshake.MIN_VERSION <= challenge.version <= handshake.MAX_VERSION:
            self.state = SessionState.CLOSED
            raise HandshakeRefused(Refusal.VERSION, f"the replica chose {challenge.version}")
        if not handshake.verify_session(self._secret, challenge.mac, "replica", *signed):
            self.state = SessionState.CLOSED
            raise HandshakeRefused(Refusal.UNAUTHENTICATED, "the replica's proof is wrong")
        self.epoch = challenge.epoch
        self.outbox.batch.proof.mac = handshake.sign_session(self._secret, "caller", *signed)
        self.outbox.added()
        self.state = SessionState.PROOF

    # ------------------------------------------------------------ the end

    def close(self) -> list[tuple[CallT, bool]]:
        """End the session.

        Returns:
            The calls it still had, each with whether it may have started.
        """
        self.state = SessionState.CLOSED
        lost = [(call, self._may_have_started(call_id)) for call_id, call in self.calls.items()]
        self.calls.clear()
        self._queued.clear()
        return lost

    def _may_have_started(self, call_id: int) -> bool:
        # A request that was never handed to the transport cannot have started. One that was may
        # have, whether or not the replica said so in time.
        queued = self._queued.get(call_id)
        return queued is not None and queued[1] <= self.outbox.batches_taken
