"""The numbers of envelopes in one session: given out by the caller, learned by the replica.

Both sides remember the same bounded number of them. When the caller has given out all numbers it
begins anew, and each number gets another meaning; a message with old meanings goes before one with
new ones.
"""

from __future__ import annotations

from serve_grpc._generated.replica_pb2 import CallerBatch, Template
from serve_grpc.protocol import wire
from serve_grpc.protocol.envelope import Envelope
from serve_grpc.protocol.outbox import Outbox
from serve_grpc.protocol.wire import WireError

__all__ = ["KnownTemplates", "TemplateNumbers"]


class TemplateNumbers:
    """The caller's side.

    Args:
        outbox: Where definitions go.

    Attributes:
        last: The envelope that was asked for last, and its number.
    """

    def __init__(self, outbox: Outbox[CallerBatch]) -> None:
        self._outbox = outbox
        self._numbers: dict[Envelope, int] = {}
        self._next = 0
        self.last: tuple[Envelope | None, int] = (None, 0)

    def number(self, envelope: Envelope) -> int:
        """The number of an envelope, which is defined in the open batch if it is new."""
        number = self._numbers.get(envelope)
        if number is None:
            if len(self._numbers) >= wire.MAX_TEMPLATES:
                self._numbers.clear()
                self._next = 0
                # A batch's templates are read before its requests, so the old meanings go first.
                self._outbox.close_batch()
            self._next += 1  # from 1 on: a request without a template reads as 0
            number = self._numbers[envelope] = self._next
            self._outbox.batch.templates.add(number=number, **envelope._asdict())
        self.last = envelope, number
        return number


class KnownTemplates(dict[int, Envelope]):
    """The replica's side: envelopes by their number."""

    def define(self, template: Template) -> None:
        """Learn a number, or another meaning of one.

        Raises:
            WireError: There are too many, or this one is too large: a session holds them for as
                long as it lives, so they are what a peer could fill our memory with.
        """
        # A number that is known may get another meaning, so a caller never needs more of them.
        if len(self) >= wire.MAX_TEMPLATES and template.number not in self:
            raise WireError(f"more than {wire.MAX_TEMPLATES} templates")
        if template.ByteSize() > wire.MAX_TEMPLATE_BYTES:
            raise WireError(f"a template of more than {wire.MAX_TEMPLATE_BYTES} bytes")
        self[template.number] = Envelope(
            template.method,
            template.request_serializer,
            template.response_serializer,
            template.stream,
            template.route,
            template.app_name,
            template.has_inputs,
        )
