"""The replica's side of one session, without I/O.

The owner feeds it what arrives (`receive`), decides on each request it returns (`reply`, `reject`)
and writes what `outbox` holds. Its states and their rules are in `session_state`. Invariant: an id
is in `ongoing_ids` from the moment `receive` returns its request until its last reply, its
rejection, its cancel or the session's end; replies to any other id are dropped, so a late reply
never reaches another call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from serve_grpc._generated.replica_pb2 import (
    CallerBatch,
    Challenge,
    Error,
    Refusal,
    ReplicaBatch,
    Reply,
    Request,
)
from serve_grpc.payload import Payload
from serve_grpc.protocol import handshake
from serve_grpc.protocol.arrival import Arrival, InboundRequest, stored_payload
from serve_grpc.protocol.assembler import Assembler, PayloadOverflow
from serve_grpc.protocol.handshake import HandshakeRefused
from serve_grpc.protocol.input_items import ReceivedInputs
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.places import LinkMemory
from serve_grpc.protocol.replica_handshake import ReplicaHandshake
from serve_grpc.protocol.sent_replies import SentReplies
from serve_grpc.protocol.session_state import SessionLife, SessionState
from serve_grpc.protocol.status import request_too_large
from serve_grpc.protocol.templates import KnownTemplates
from serve_grpc.protocol.wire import (
    INLINE_BYTES,
    MAX_FRAMES,
    MAX_HANDSHAKE_BYTES,
    MAX_UNFINISHED_PAYLOADS,
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
_INPUT_ITEMS = CallerBatch.INPUT_ITEMS_FIELD_NUMBER
_RESULT, _ITEM = Reply.RESULT, Reply.ITEM
_HELLO, _PROOF, _OPEN = SessionState.HELLO, SessionState.PROOF, SessionState.OPEN
_DRAINING, _CLOSED = SessionState.DRAINING, SessionState.CLOSED


class ReplicaSession(SessionLife):
    """State machine of the replica.

    Args:
        replica_id: Unique id of this replica.
        keyring: The cluster's secrets; the caller says which one it holds.
        nonce: `NONCE_BYTES` fresh random bytes.
        epoch: A number no other session of this replica has.
        max_ongoing_requests: Told to the caller.
        max_message_bytes: Largest payload this side takes.
        takes_stored: Whether payloads may go by Ray's object store.
        input_credit: First credit of each stream that is an argument, in items and bytes; None if
            it takes none.

    Attributes:
        outbox: What is to be written.
        ongoing_ids: Calls that are not over, by their id within the session.
        refusal: Why the session was refused; None if it was not.
        replies: Those that need more than a frame.
        grant_input: Lets the caller send more of an input; see `ReceivedInputs.grant`.
        stores_above: Size above which results go by Ray's object store; None if no payload of the
            session goes there, as one side says.
        caller_reads_buffers: Whether the caller reads pickles that are followed by their buffers.
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
        takes_stored: bool = False,
        input_credit: tuple[int, int] | None = None,
    ) -> None:
        super().__init__("replica", replica_id, epoch)
        self._handshake: ReplicaHandshake | None = ReplicaHandshake(
            replica_id=replica_id,
            keyring=keyring,
            nonce=nonce,
            epoch=epoch,
            max_ongoing_requests=max_ongoing_requests,
            max_message_bytes=max_message_bytes,
            takes_stored=takes_stored,
            input_credit=input_credit,
        )
        self._max_message_bytes = max_message_bytes
        self._assembler = Assembler(max_message_bytes, MAX_UNFINISHED_PAYLOADS * max_message_bytes)
        self._templates = KnownTemplates()
        self._requests_read = 0
        # Calls that the end of the session cut off, until `close` gives them to the owner.
        self._left_behind: set[int] = set()
        self.refusal: Refusal | None = None
        self.stores_above: int | None = None
        self.caller_reads_buffers = False
        self.ongoing_ids: set[int] = set()
        self.outbox: Outbox[ReplicaBatch] = Outbox(ReplicaBatch)
        self.replies = SentReplies(self.outbox, max_message_bytes)
        self._inputs = ReceivedInputs(self.outbox, self._assembler, input_credit, max_message_bytes)
        self.grant_input, self._input_windows = self._inputs.grant, self._inputs.windows

    def __repr__(self) -> str:
        return (
            f"<ReplicaSession {self.epoch} {self.state.value}, {len(self.ongoing_ids)} calls, "
            f"{self.outbox!r}>"
        )

    def share(self, memory: LinkMemory) -> None:
        """Use what the link shares beside messages; before the first message comes."""
        assert self._handshake is not None, "the session is open"
        self._handshake.memory = memory

    # ------------------------------------------------------------ receiving

    def receive(self, data: bytes) -> Arrival:
        """Handle one message; one that comes after the end says nothing.

        Raises:
            WireError: The peer broke the protocol. The session is refused: the owner writes the
                outbox and ends the stream, as if the arrival said `refused`.
        """
        if self.state is _CLOSED:
            return Arrival()
        try:
            if self._handshake is not None:
                return self._shake_hands(self._handshake, data)
            return self._read(data)
        except WireError as error:
            self.refuse(Refusal.PROTOCOL, str(error))
            raise

    def _read(self, data: bytes) -> Arrival:
        batch, fragments = decode_batch(CallerBatch, data, self.outbox.memory)
        arrival = Arrival()
        # Before all other fields: what owns them may be in this message.
        for call_id, part, begun in fragments:
            if self.state is _OPEN or call_id in self.ongoing_ids:
                self._assembler.add(call_id, part, begun)
        # Only what is there, in the order of the field numbers: looking at each field in turn costs
        # more than decoding a batch of one request. Templates come before the requests that name
        # them, and a cancel meets the request of its own message.
        for field_, value in batch.ListFields():
            number = field_.number
            if number == _REQUESTS:
                for request in value:
                    self._on_request(request, arrival)
            elif number == _TEMPLATES:
                for template in value:
                    self._templates.define(template)
            elif number == _CREDITS:
                arrival.credits = [(credit.id, credit.items, credit.bytes) for credit in value]
            elif number == _CANCELS:
                self._on_cancels(value, arrival)
            elif number == _PING:
                self.outbox.batch.pong = value
                self.outbox.added()
            elif number == _INPUT_ITEMS:
                arrival.inputs = self._inputs.receive(value, self.ongoing_ids)
        if arrival.requests and self.state is _OPEN:
            # Cumulative, so it rides on whatever leaves next, and never causes a message.
            self.outbox.leaving.requests_read = self._requests_read
        return arrival

    def _on_cancels(self, call_ids: Collection[int], arrival: Arrival) -> None:
        if len(call_ids) > MAX_FRAMES:  # they are packed, many in one field
            raise WireError(f"over {MAX_FRAMES} cancels in one message")
        for call_id in call_ids:
            # Whether or not its request has come: a large one may be cancelled half-way.
            self._assembler.discard(call_id)
            if call_id in self.ongoing_ids:
                self._end(call_id)
                arrival.cancelled.append(call_id)

    def _on_request(self, request: Request, arrival: Arrival) -> None:
        call_id = request.id
        if call_id == 0 or call_id in self.ongoing_ids:
            raise WireError(f"request id {call_id} is 0 or in use")
        if self.state is not _OPEN:
            self._assembler.discard(call_id)
            return  # not among the drain's requests; the caller knows that it did not start
        # Counted whatever becomes of it: the caller counts the requests that it sent, and both
        # counts say which of them a drain has left out.
        self._requests_read += 1
        self.ongoing_ids.add(call_id)
        template = self._templates.get(request.template)
        if template is None:
            self._assembler.discard(call_id)
            text = f"template {request.template} was never defined"
            self.fail(call_id, Error(code=Error.INVALID_REQUEST, message=text))
            return
        if template.has_inputs:
            self._inputs.open(call_id, len(request.inputs))
        try:
            payload = self._assembler.take(call_id, request.payload)
            if not payload and request.HasField("stored"):
                payload = stored_payload(request.stored, self.stores_above)
        except PayloadOverflow as overflow:
            self.fail(call_id, request_too_large(overflow.size, self._max_message_bytes))
            return
        arrival.requests.append(InboundRequest(call_id, template, request, payload))

    def _shake_hands(self, shaking: ReplicaHandshake, data: bytes) -> Arrival:
        # Before it is decoded: this may be anybody's.
        if len(data) > MAX_HANDSHAKE_BYTES:
            raise WireError(f"a message of {len(data)} bytes before the proof")
        # What comes beside a hello or a proof in the same message is not looked at.
        batch, _ = decode_batch(CallerBatch, data)
        try:
            if self.state is _HELLO and not shaking.has_hello and batch.HasField("hello"):
                challenge = shaking.hear_hello(batch.hello)
                if challenge is None:
                    return Arrival(unknown_key=True)
                self._challenge(challenge)
            elif self.state is _PROOF and batch.HasField("proof"):
                shaking.check_proof(batch.proof.mac)
                self._welcome(shaking)
            else:
                return self.refuse(Refusal.PROTOCOL, f"expected {self.state.value}")
        except HandshakeRefused as refused:
            return self.refuse(refused.reason, refused.message)
        return Arrival()

    def hear_hello_again(self) -> Arrival:
        """After `unknown_key`, with what the keyring holds by now: go on, or refuse."""
        if self.state is not _HELLO or self._handshake is None or not self._handshake.has_hello:
            raise self.illegal("a second look at the hello")
        try:
            self._challenge(self._handshake.hear_hello_again())
        except HandshakeRefused as refused:
            return self.refuse(refused.reason, refused.message)
        return Arrival()

    def _challenge(self, challenge: Challenge) -> None:
        self.outbox.batch.challenge.CopyFrom(challenge)
        self.outbox.added()
        self.move(_PROOF)

    def _welcome(self, shaking: ReplicaHandshake) -> None:
        if shaking.caller_knows(handshake.MEMORY):
            self.outbox.memory = shaking.memory
        self.outbox.batch.welcome.CopyFrom(
            shaking.welcome(has_memory=self.outbox.memory is not None)
        )
        self.outbox.added()
        self.replies.caller_borrows = shaking.caller_knows(handshake.LENT)
        self.caller_reads_buffers = shaking.caller_knows(handshake.BUFFERS)
        self.stores_above = shaking.stores_above
        self._handshake = None
        self.move(_OPEN)
        if shaking.must_drain:
            self.drain()

    def refuse(self, reason: Refusal.Reason, message: str) -> Arrival:
        """Refuse the session; the owner writes the outbox and ends the stream.

        A session that is closed has said its last word: nothing more is queued.
        """
        if self.state is not _CLOSED:
            self.refusal = Refusal(reason=reason, message=message)
            self.outbox.batch.refusal.CopyFrom(self.refusal)
            self.outbox.added()
            self._silence()
            self.move(_CLOSED, f"{Refusal.Reason.Name(reason)}: {message}")
        return Arrival(refused=True)

    # ------------------------------------------------------------ sending

    def reply(self, call_id: int, kind: Reply.Kind, payload: Payload = b"") -> None:
        """Queue a result, an item or the end of a stream; dropped if the call is over."""
        if call_id not in self.ongoing_ids:
            return
        if kind != _ITEM:
            self.ongoing_ids.discard(call_id)
            if self._input_windows:  # most sessions have none, and this is for each call
                self._input_windows.pop(call_id, None)
        outbox = self.outbox
        size = len(payload)
        # Most replies. A generator may still be sending a large item of this id; its small ones
        # must not overtake it. `Segments` are left out, however small: they may name refs.
        if type(payload) is bytes and size <= INLINE_BYTES and not outbox.has_large(call_id):
            # Field by field, for protobuf looks names of arguments up for twice as long. A result
            # is what a reply is that says nothing else.
            reply = outbox.batch.replies.add()
            reply.id = call_id
            reply.payload = payload
            if kind != _RESULT:
                reply.kind = kind
            outbox.added(size)
            return
        self.replies.add(call_id, kind, payload)

    def fail(self, call_id: int, error: Error, refs: Sequence[Any] = ()) -> None:
        """Queue the failure of a call, which names `refs`; dropped if the call is over."""
        if call_id in self.ongoing_ids:
            self.ongoing_ids.discard(call_id)
            self._input_windows.pop(call_id, None)
            self.replies.add_error(call_id, error, refs)

    def reject(self, call_id: int) -> bool:
        """Turn a request away because the replica is full; False if the call is over.

        It did not start, so its caller sends it elsewhere, whatever it does.
        """
        if call_id not in self.ongoing_ids:
            return False
        self.ongoing_ids.discard(call_id)
        self._input_windows.pop(call_id, None)
        self.outbox.batch.rejected.append(call_id)
        self.outbox.added()
        return True

    def slot_free(self) -> None:
        """Tell a caller that was turned away that it may try again."""
        if self.state is _CLOSED:
            return
        self.outbox.batch.slot_free = True
        self.outbox.added()

    def stamp(self, ongoing: int, standby: int = 0) -> None:
        """Put the replica's load on the message that leaves next, and who may stand by.

        When the message is about to leave, in a session that is open: it causes no message.
        """
        batch = self.outbox.leaving
        batch.ongoing = ongoing
        batch.standby = standby

    def drain(self) -> None:
        """Take no more requests; those already returned by `receive` go on."""
        if self._handshake is not None:
            self._handshake.must_drain = True
        elif self.state is _OPEN:
            # Of requests that will not be taken any more; inputs of those that run go on.
            self._assembler.keep_only(self.ongoing_ids)
            # The caller looks for fields of an open session only after the welcome's message.
            self.outbox.close_batch()
            self.outbox.batch.drain.requests_read = self._requests_read
            self.outbox.added()
            self.move(_DRAINING)

    def close(self) -> list[int]:
        """End the session.

        Returns:
            Ids of the calls that were not over when it ended; nothing the second time.
        """
        self._silence()
        self.move(_CLOSED)
        ids = list(self._left_behind)
        self._left_behind.clear()
        return ids

    def _silence(self) -> None:
        # With no id ongoing, replies, failures and rejections are dropped where they look for
        # theirs: a closed session costs each reply of the open ones nothing.
        self._left_behind |= self.ongoing_ids
        self.ongoing_ids.clear()
        self._inputs.clear()

    def _end(self, call_id: int) -> None:
        self.ongoing_ids.discard(call_id)
        self._input_windows.pop(call_id, None)
        self.outbox.drop_large(call_id)
