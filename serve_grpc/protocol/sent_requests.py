"""Requests as they go out, and which of them the replica has read, may have read, or never saw.

What may be sent to another replica hangs on this: a request that was never handed to the carrier
has not started, nor has one beyond those that a draining replica has read. Of all others nobody
knows, unless the replica said so. Invariant: requests are counted in the order in which their
frames are queued. Messages keep that order and a gRPC stream does, so the replica's count of those
it has read says which ones they are.
"""

from __future__ import annotations

from serve_grpc._generated.replica_pb2 import CallerBatch, Input, StoredPayload
from serve_grpc.payload import Segments
from serve_grpc.protocol.envelope import RequestFields
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.templates import TemplateNumbers

__all__ = ["SentRequests"]


class SentRequests:
    """The requests of one session, on the caller's side.

    Args:
        outbox: Where their frames go.

    Attributes:
        frames: Of each call that is not over and whose frame is queued: its number in the count of
            requests, and the number of the message that it is in.
        queued: How many requests were queued so far.
        read: How many of them the replica has read, by its last word.
    """

    def __init__(self, outbox: Outbox[CallerBatch]) -> None:
        self._outbox = outbox
        self._templates = TemplateNumbers(outbox)
        self.frames: dict[int, tuple[int, int]] = {}
        self.queued = 0
        self.read = 0

    def add(self, call_id: int, fields: RequestFields, payload: bytes) -> None:
        """Queue the frame of a request.

        Args:
            call_id, fields: Of the call.
            payload: What travels inside the frame; b"" if it is elsewhere, or went before.
        """
        outbox, envelope = self._outbox, fields.envelope
        # By identity: a caller keeps one envelope for each of its methods, and to compare or hash
        # their six texts for each request takes longer.
        last, template = self._templates.last
        if envelope is not last:
            template = self._templates.number(envelope)
        request = outbox.batch.requests.add(
            id=call_id, template=template, request_id=fields.request_id, payload=payload
        )
        # Fields that are empty are not set: each takes as long as ten lines of Python.
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
        if not payload and type(where := fields.payload) is Segments and where.stored is not None:
            request.stored.CopyFrom(StoredPayload(**where.stored._asdict()))
        size = len(payload)
        if fields.context is not None:
            request.context.CopyFrom(fields.context)
            size += fields.context.ByteSize()
        if envelope.has_inputs:
            request.inputs.extend(Input(position=at, name=name) for at, name in fields.inputs)
        self.queued += 1
        # Before `added`, which may close the batch: the frame is in the one that is open now.
        self.frames[call_id] = self.queued, outbox.pending_batch
        outbox.added(size)

    def was_read(self, call_id: int) -> bool:
        """Whether the replica has said that it read the request of a call that is not over."""
        frame = self.frames.get(call_id)
        return frame is not None and frame[0] <= self.read

    def is_beyond(self, call_id: int, requests_read: int) -> bool:
        """Whether a call's request is not among the first `requests_read`."""
        # Without a frame: its payload is still leaving, so the replica has not read the request.
        frame = self.frames.get(call_id)
        return frame is None or frame[0] > requests_read

    def may_have_started(self, call_id: int) -> bool:
        """Whether the replica may have read the request, told or not."""
        # A message that was taken from the outbox may be anywhere: in a buffer of the carrier, on
        # the wire, or read by a replica that died before it could say so.
        frame = self.frames.get(call_id)
        return frame is not None and frame[1] <= self._outbox.batches_taken
