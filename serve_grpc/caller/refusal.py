"""What is looked at before a call goes to the replica that was chosen for it."""

from __future__ import annotations

from serve_grpc.caller.connection import Connection
from serve_grpc.caller.outcomes import Expired, Outcome, Raised, TooLarge
from serve_grpc.deadlines import remaining_ms
from serve_grpc.errors import ServeGrpcError
from serve_grpc.protocol.caller import RequestFields

__all__ = ["TAKES_NO_INPUTS", "not_sendable", "refusal_of"]

TAKES_NO_INPUTS = (
    "its replicas run a version of serve_grpc that takes no streams as arguments: redeploy it with "
    "this version, or send the items as one argument"
)


def refusal_of(
    fields: RequestFields, deadline_s: float | None, connection: Connection
) -> Outcome | None:
    """Why a call cannot be sent to this replica; sets the time it has left.

    Args:
        fields: Of the call.
        deadline_s: On `time.monotonic`, None for none.
        connection: To the replica.

    Returns:
        None if it can. If it is over the limit then, the replica takes it by Ray's object store.
    """
    if fields.inputs and not connection.takes_inputs:
        return Raised(ServeGrpcError(TAKES_NO_INPUTS, request_id=fields.request_id))
    if connection.peer.facts.serializers is not None:
        try:
            connection.check_serializers(fields.envelope)
        except ServeGrpcError as error:
            error.request_id = fields.request_id
            return Raised(error)
    if deadline_s is not None:
        # A duration, taken anew for each try: the clocks of two machines do not agree.
        fields.timeout_ms = remaining_ms(deadline_s)
        if fields.timeout_ms == 0:
            return Expired()
    size, limit = len(fields.payload), connection.peer_max_message_bytes
    if size > limit and not connection.takes_stored:
        return TooLarge(size, limit, "request")
    return None


def not_sendable(reason: ValueError, request_id: str) -> Raised:
    """How a call ends of which a text is not valid."""
    error = ServeGrpcError(f"the call cannot be sent: {reason}", request_id=request_id)
    error.__cause__ = reason
    return Raised(error)
