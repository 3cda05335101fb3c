"""The replica's side of one session, without I/O.

The owner feeds it what arrives (`receive`), decides on each request it returns (`reply`, `reject`)
and writes what `outbox` holds. Invariant: an id is in `ongoing_ids` from the moment `receive`
returns its request until its last reply, its rejection or its cancel; replies to any other id are
dropped, so a late reply never reaches a stranger.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Error,
    Hello,
    Refusal,
    ReplicaBatch,
    Reply,
    Request,
    Template,
)
from serve_grpc.payload import Payload, joined, refs_of
from serve_grpc.protocol import handshake
from serve_grpc.protocol.envelope import Envelope
from serve_grpc.protocol.handshake import SessionState
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.status import shortened
from serve_grpc.protocol.wire import (
    INLINE_BYTES,
    MAX_FRAMES,
    MAX_HANDSHAKE_BYTES,
    MAX_TEMPLATE_BYTES,
    MAX_TEMPLATES,
    MAX_UNFINISHED_PAYLOADS,
    Assembler,
    PayloadOverflow,
    WireError,
    decode_batch,
)

__all__ = ["Arrival", "InboundRequest", "ReplicaSession"]


# Numbers of fields and kinds; looking one up on a generated class takes longer than comparing it.
_TEMPLATES = CallerBatch.TEMPLATES_FIELD_NUMBER
_REQUESTS = CallerBatch.REQUESTS_FIELD_NUMBER
_CREDITS = CallerBatch.CREDITS_FIELD_NUMBER
_CANCELS = CallerBatch.CANCELS_FIELD_NUMBER
_PING = CallerBatch.PING_FIELD_NUMBER
_ITEM = Reply.ITEM


@dataclass(slots=True)
class InboundRequest:
    """One request, with the envelope it refers to."""

    id: int
    template: Envelope
    request: Request
    payload: Payload


@dataclass(slots=True)
class Arrival:
    """Everything one message of the caller said."""

    requests: list[InboundRequest] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    credits: list[tuple[int, int, int]] = field(default_factory=list)
    refused: bool = False
    """The handshake failed; write what the outbox holds, then end the stream."""
    unknown_key: bool = False
    """The caller holds another secret; look for newer ones, then `hear_hello_again`."""


class ReplicaSession:
    """State machine of the replica.

    Args:
        replica_id: Unique id of this replica.
        keyring: The cluster's secrets; the caller says which one it holds.
        nonce: `NONCE_BYTES` fresh random bytes.
        epoch: A number no other session of this replica has.
        max_ongoing_requests: Told to the caller.
        max_message_bytes: Largest payload this side takes.
    """

    def __init__(
        self,
        *,
        replica_id: str,
        keyring: Keyring,
        nonce: bytes,
        epoch: int,
        max_ongoing_requests: int,
        max_message_bytes: int,
    ) -> None:
        self._replica_id = replica_id
        self._keyring = keyring
        self._secret = b""
        self._hello: Hello | None = None
        self._nonce = nonce
        self._max_ongoing_requests = max_ongoing_requests
        self._max_message_bytes = max_message_bytes
        self._assembler = Assembler(max_message_bytes, MAX_UNFINISHED_PAYLOADS * max_message_bytes)
        self._templates: dict[int, Envelope] = {}
        self._caller_nonce = b""
        self._requests_read = 0
        self._must_drain = False
        self.refusal: Refusal | None = None
        self._last_lent = 0
        self.epoch = epoch
        self.lent: dict[int, Sequence[Any]] = {}
        self.ongoing_ids: set[int] = set()
        self.state = SessionState.HELLO
        self.outbox: Outbox[ReplicaBatch] = Outbox(ReplicaBatch)

    def __repr__(self) -> str:
        return (
            f"<ReplicaSession {self.epoch} {self.state.value}, {len(self.ongoing_ids)} calls, "
            f"{self.outbox!r}>"
        )

    # ------------------------------------------------------------ receiving

    def receive(self, data: bytes) -> Arrival:
        """Handle one message.

        Raises:
            WireError: The peer broke the protocol; the session is over.
        """
        is_proven = self.state is not SessionState.HELLO and self.state is not SessionState.PROOF
        if not is_proven and len(data) > MAX_HANDSHAKE_BYTES:
            raise WireError(f"a message of {len(data)} bytes before the proof")
        batch, fragments = decode_batch(CallerBatch, data)
        if not is_proven:
            return self._handshake(batch)
        arrival = Arrival()
        if self.state is SessionState.OPEN:  # while draining, no request will own them
            for call_id, part in fragments:
                self._assembler.add(call_id, part)
        # Only what is there, in the order of the field numbers: looking at each field in turn costs
        # more than decoding a batch of one request.
        for field_, value in batch.ListFields():
            number = field_.number
            if number == _REQUESTS:
                for request in value:
                    self._on_request(request, arrival)
            elif number == _TEMPLATES:
                for template in value:
                    self._define(template)
            elif number == _CREDITS:
                arrival.credits = [(credit.id, credit.items, credit.bytes) for credit in value]
            elif number == _CANCELS:
                self._on_cancels(value, arrival)
            elif number == _PING:
                self.outbox.batch.pong = value
                self.outbox.added()
        if arrival.requests and self.state is SessionState.OPEN:
            # Cumulative, so it rides on whatever leaves next, beside the load that counts them; it
            # never causes a message.
            self.outbox.leaving.requests_read = self._requests_read
        return arrival

    def _define(self, template: Template) -> None:
        if len(self._templates) >= MAX_TEMPLATES and template.number not in self._templates:
            raise WireError(f"more than {MAX_TEMPLATES} templates")
        if template.ByteSize() > MAX_TEMPLATE_BYTES:
            raise WireError(f"a template of more than {MAX_TEMPLATE_BYTES} bytes")
        self._templates[template.number] = Envelope(
            template.method,
            template.request_serializer,
            template.response_serializer,
            template.stream,
            template.route,
            template.app_name,
        )

    def _on_cancels(self, call_ids: Collection[int], arrival: Arrival) -> None:
        if len(call_ids) > MAX_FRAMES:  # they are packed, many in one field
            raise WireError(f"over {MAX_FRAMES} cancels in one message")
        for call_id in call_ids:
            self._assembler.discard(call_id)
            if call_id in self.ongoing_ids:
                self._end(call_id)
                arrival.cancelled.append(call_id)

    def _on_request(self, request: Request, arrival: Arrival) -> None:
        call_id = request.id
        if call_id == 0 or call_id in self.ongoing_ids:
            raise WireError(f"request id {call_id} is 0 or in use")
        if self.state is not SessionState.OPEN:
            self._assembler.discard(call_id)
            return  # not among the drain's requests; the caller knows that it did not start
        self._requests_read += 1
        self.ongoing_ids.add(call_id)
        template = self._templates.get(request.template)
        if template is None:
            self._assembler.discard(call_id)
            text = f"template {request.template} was never defined"
            self.fail(call_id, Error(code=Error.INVALID_REQUEST, message=text))
            return
        try:
            payload = self._assembler.take(call_id, request.payload)
        except PayloadOverflow as overflow:
            message = Error(
                code=Error.MESSAGE_TOO_LARGE,
                size=overflow.size,
                limit=self._max_message_bytes,
                direction="request",
            )
            self.fail(call_id, message)
            return
        arrival.requests.append(InboundRequest(call_id, template, request, payload))

    def _handshake(self, batch: CallerBatch) -> Arrival:
        if self.state is SessionState.HELLO and self._hello is None and batch.HasField("hello"):
            return self._on_hello(batch.hello)
        if self.state is SessionState.PROOF and batch.HasField("proof"):
            signed = (self._caller_nonce, self._nonce, self._replica_id, self.epoch)
            if not handshake.verify_session(self._secret, batch.proof.mac, "caller", *signed):
                return self.refuse(Refusal.UNAUTHENTICATED, "the proof is wrong")
            self.state = SessionState.OPEN
            welcome = self.outbox.batch.welcome
            welcome.max_ongoing_requests = self._max_ongoing_requests
            welcome.max_message_bytes = self._max_message_bytes
            self.outbox.added()
            if self._must_drain:
                self.drain()
            return Arrival()
        return self.refuse(Refusal.PROTOCOL, f"expected {self.state.value}")

    def _on_hello(self, hello: Hello) -> Arrival:
        version = handshake.common_version(hello.min_version, hello.max_version)
        if version is None:
            return self.refuse(
                Refusal.VERSION,
                f"this replica speaks versions {handshake.MIN_VERSION} to "
                f"{handshake.MAX_VERSION}, the caller {hello.min_version} to {hello.max_version}",
            )
        if hello.replica_id != self._replica_id:
            return self.refuse(
                Refusal.WRONG_REPLICA, f"this is not replica {hello.replica_id[:256]!r}"
            )
        if not handshake.NONCE_BYTES <= len(hello.nonce) <= handshake.MAX_NONCE_BYTES:
            return self.refuse(Refusal.PROTOCOL, "the nonce is too short or too long")
        self._hello = hello
        return self._challenge(hello, version) or Arrival(unknown_key=True)

    def hear_hello_again(self) -> Arrival:
        """After `unknown_key`, with what the keyring holds by now: go on, or refuse."""
        hello = self._hello
        assert hello is not None
        version = handshake.common_version(hello.min_version, hello.max_version)
        assert version is not None, "it was looked at when the hello came"
        return self._challenge(hello, version) or self.refuse(
            Refusal.UNAUTHENTICATED, "the caller's secret is not this cluster's"
        )

    def _challenge(self, hello: Hello, version: int) -> Arrival | None:
        secret = self._keyring.find(hello.key_id)
        if secret is None:
            return None
        self._secret = secret
        self._caller_nonce = hello.nonce
        challenge = self.outbox.batch.challenge
        challenge.version, challenge.nonce, challenge.epoch = version, self._nonce, self.epoch
        challenge.mac = handshake.sign_session(
            secret, "replica", hello.nonce, self._nonce, self._replica_id, self.epoch
        )
        self.outbox.added()
        self.state = SessionState.PROOF
        return Arrival()

    def refuse(self, reason: Refusal.Reason, message: str) -> Arrival:
        """Refuse the session; the owner writes the outbox and ends the stream."""
        self.state = SessionState.CLOSED
        self.refusal = Refusal(reason=reason, message=message)
        self.outbox.batch.refusal.CopyFrom(self.refusal)
        self.outbox.added()
        return Arrival(refused=True)

    # ------------------------------------------------------------ sending

    @property
    def caller_borrows(self) -> bool:
        """Whether the caller fetches the refs that `Reply.lent` names."""
        return self._hello is not None and handshake.LENT in self._hello.features

    def reply(self, call_id: int, kind: Reply.Kind, payload: Payload = b"") -> None:
        """Queue a result, an item or the end of a stream; dropped if the call is over."""
        if call_id not in self.ongoing_ids:
            return
        if kind != _ITEM:
            self.ongoing_ids.discard(call_id)
        outbox = self.outbox
        size = len(payload)
        if type(payload) is bytes and size <= INLINE_BYTES and not outbox.has_large(call_id):
            outbox.batch.replies.add(id=call_id, kind=kind, payload=payload)
            outbox.added(size)
            return
        refs = refs_of(payload)
        if size > INLINE_BYTES:
            outbox.send_large(call_id, payload, lambda: self._add_reply(call_id, kind, b"", refs))
        elif outbox.has_large(call_id):
            small = joined(payload)
            outbox.send_after_large(call_id, lambda: self._add_reply(call_id, kind, small, refs))
        else:
            self._add_reply(call_id, kind, joined(payload), refs)

    def _add_reply(
        self, call_id: int, kind: Reply.Kind, payload: bytes, refs: Sequence[Any]
    ) -> None:
        lent = self._lend(refs)
        self.outbox.batch.replies.add(id=call_id, kind=kind, payload=payload, lent=lent)
        self.outbox.added(len(payload))

    def _lend(self, refs: Sequence[Any]) -> int:
        """Hold refs for the caller, from when the reply that names them is sure to leave.

        One that does not know how to fetch them is not told; they are held all the same.
        """
        if not refs:
            return 0
        self._last_lent += 1
        self.lent[self._last_lent] = refs
        return self._last_lent if self.caller_borrows else 0

    def fail(self, call_id: int, error: Error, refs: Sequence[Any] = ()) -> None:
        """Queue the failure of a call, which names `refs`; dropped if the call is over."""
        if call_id not in self.ongoing_ids:
            return
        self.ongoing_ids.discard(call_id)
        outbox, size = self.outbox, error.ByteSize()
        if size > self._max_message_bytes:
            error, refs = shortened(error), ()
            size = error.ByteSize()

        def add_small() -> None:
            outbox.batch.replies.add(
                id=call_id, kind=Reply.ERROR, error=error, lent=self._lend(refs)
            )
            outbox.added(size)

        if size > INLINE_BYTES:
            data: bytes = error.SerializeToString()
            outbox.send_large(
                call_id, data, lambda: self._add_reply(call_id, Reply.ERROR, b"", refs)
            )
        elif outbox.has_large(call_id):
            outbox.send_after_large(call_id, add_small)
        else:
            add_small()

    def reject(self, call_id: int) -> bool:
        """Turn a request away because the replica is full; False if the call is over."""
        if call_id not in self.ongoing_ids:
            return False
        self.ongoing_ids.discard(call_id)
        self.outbox.batch.rejected.append(call_id)
        self.outbox.added()
        return True

    def slot_free(self) -> None:
        """Tell a caller that was turned away that it may try again."""
        self.outbox.batch.slot_free = True
        self.outbox.added()

    def stamp(self, ongoing: int, standby: int = 0) -> None:
        """Put the replica's load on the message that leaves next, and who may stand by."""
        batch = self.outbox.leaving
        batch.ongoing = ongoing
        batch.standby = standby

    def drain(self) -> None:
        """Take no more requests; those already returned by `receive` go on."""
        if self.state is SessionState.OPEN:
            self.state = SessionState.DRAINING
            self._assembler.clear()
            # The caller looks for fields of an open session only after the welcome's message.
            self.outbox.close_batch()
            self.outbox.batch.drain.requests_read = self._requests_read
            self.outbox.added()
        else:
            self._must_drain = True

    def close(self) -> list[int]:
        """End the session; returns the ids of the calls it still had."""
        self.state = SessionState.CLOSED
        ids = list(self.ongoing_ids)
        self.ongoing_ids.clear()
        return ids

    def _end(self, call_id: int) -> None:
        self.ongoing_ids.discard(call_id)
        self.outbox.drop_large(call_id)
