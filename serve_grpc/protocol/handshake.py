"""Who may speak to whom: protocol versions and proofs of membership.

Both sides hold the cluster's secret. Each signs both nonces, the replica's id and the session's
epoch, under a label of its own, so no proof can be replayed, reflected or used at another replica.
The plain door has no round trip for a challenge; its callers sign the time, a nonce, the method
and the request's digest instead (docs/decisions/0009-signed-plain-calls.md). The two sides of a
session's handshake are machines of their own (`caller_handshake`, `replica_handshake`); what both
compute is here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict

from serve_grpc._generated.replica_pb2 import Refusal
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.protocol.session_state import SessionState

__all__ = [
    "BUFFERS",
    "INPUTS",
    "LENT",
    "MAX_VERSION",
    "MEMORY",
    "MIN_VERSION",
    "NONCE_BYTES",
    "STORED",
    "CallVerifier",
    "HandshakeRefused",
    "SessionState",
    "common_version",
    "sign_call",
    "sign_session",
    "verify_session",
]

MIN_VERSION = 1
MAX_VERSION = 1
LENT = "lent"
"""A caller's feature: it fetches the refs that `Reply.lent` names."""
BUFFERS = "buffers"
"""A feature of either side: it reads pickles with their buffers behind them (`pickling`)."""
MEMORY = "memory"
"""A feature of both sides: fragments may lie in shared memory, on a link that has some."""
STORED = "stored"
"""A feature of either side: it takes payloads that are in Ray's object store."""
INPUTS = "inputs"
"""A replica's feature: it takes streams as arguments (`Request.inputs`)."""
NONCE_BYTES = 16
MAX_NONCE_BYTES = 64

CALL_SCHEME = "serve-grpc-v1"
CALL_WINDOW_S = 60.0
"""How far the signed time of a plain call may be from the replica's clock."""
MAX_REMEMBERED_NONCES = 100_000


class HandshakeRefused(Exception):
    """One side refused the session, or failed to prove itself.

    Attributes:
        reason: Of the Refusal message.
        message: For a human; without the name of the reason, which `str()` puts before it.
    """

    def __init__(self, reason: Refusal.Reason, message: str) -> None:
        known = Refusal.Reason.values()
        # A newer peer may have reasons that this side has no name for.
        name = Refusal.Reason.Name(reason) if reason in known else f"reason {reason}"
        super().__init__(f"{name}: {message}")
        self.reason = reason
        self.message = message


def common_version(min_version: int, max_version: int) -> int | None:
    """The newest version both sides speak, None if there is none."""
    version = min(MAX_VERSION, max_version)
    return version if version >= max(MIN_VERSION, min_version) else None


def _mac(secret: bytes, *parts: bytes) -> bytes:
    # Lengths are signed with the parts, so no two different lists of parts give the same bytes.
    # Without them a byte could be moved from one nonce to the next under the same proof.
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.new(secret, message, hashlib.sha256).digest()


def sign_session(
    secret: bytes,
    label: str,
    caller_nonce: bytes,
    replica_nonce: bytes,
    replica_id: str,
    epoch: int,
) -> bytes:
    """Proof of one side of a session.

    Both sides sign the same values. The label keeps one side's proof from passing as the other's
    when it is sent back (reflection), the replica's id keeps it from passing at another replica,
    nonces and epoch keep it from passing a second time.

    Args:
        secret: The cluster's secret.
        label: Whose proof it is: "caller" or "replica".
        caller_nonce, replica_nonce: Fresh bytes of both sides.
        replica_id: Unique id of the replica meant.
        epoch: The replica's number for the session.
    """
    return _mac(
        secret,
        b"serve_grpc session v1",
        label.encode(),
        caller_nonce,
        replica_nonce,
        replica_id.encode(),
        epoch.to_bytes(8, "big"),
    )


def verify_session(
    secret: bytes,
    mac: bytes,
    label: str,
    caller_nonce: bytes,
    replica_nonce: bytes,
    replica_id: str,
    epoch: int,
) -> bool:
    """Whether `mac` is the proof of that side, compared in constant time."""
    expected = sign_session(secret, label, caller_nonce, replica_nonce, replica_id, epoch)
    return hmac.compare_digest(mac, expected)


def sign_call(
    secret: bytes, method: str, replica_id: str, request: bytes, nonce: str, now_s: float
) -> str:
    """Value of the `authorization` metadata of one plain call.

    Args:
        secret: The cluster's secret.
        method: Full gRPC method, "/serve_grpc.v1.Replica/Call".
        replica_id: Unique id of the replica meant.
        request: The serialized request message; b"" where the method streams its requests.
        nonce: Fresh random text without spaces.
        now_s: Seconds since the epoch.
    """
    return f"{CALL_SCHEME} {now_s:.3f} {nonce} " + _call_mac(
        secret, method, replica_id, request, nonce, f"{now_s:.3f}"
    )


def _call_mac(
    secret: bytes, method: str, replica_id: str, request: bytes, nonce: str, time_text: str
) -> str:
    return _mac(
        secret,
        b"serve_grpc call v1",
        method.encode(),
        replica_id.encode(),
        hashlib.sha256(request).digest(),
        nonce.encode(),
        time_text.encode(),
    ).hex()


class CallVerifier:
    """Checks the proofs of plain calls and refuses each nonce the second time.

    A proof does not say which secret it was made with; there are two at most.
    """

    def __init__(self, keyring: Keyring, replica_id: str) -> None:
        self._keyring = keyring
        self._replica_id = replica_id
        self._seen: OrderedDict[str, float] = OrderedDict()

    def verify(self, authorization: str, method: str, request: bytes, now_s: float) -> bool:
        """Whether this call comes from a member of the cluster, now, for the first time."""
        fields = authorization.split(" ")
        if len(fields) != 4 or fields[0] != CALL_SCHEME:
            return False
        _, time_text, nonce, mac = fields
        # The time as text, as it came: nothing of it is parsed before the mac holds, and a number
        # that is read and printed again may be another text.
        signed = (method, self._replica_id, request, nonce, time_text)
        macs = [_call_mac(secret, *signed).encode() for secret in self._keyring]
        # A list, not a generator: all secrets are compared, so the time taken does not tell which
        # of them fits. As bytes: of texts compare_digest takes ASCII only, and raises TypeError.
        if not any([hmac.compare_digest(mac.encode(), expected) for expected in macs]):
            return False
        # The mac holds, so the time was written by a member and parses. Only now is the nonce
        # remembered: those of peers without the secret would push members' out of the table.
        if abs(now_s - float(time_text)) > CALL_WINDOW_S or nonce in self._seen:
            return False
        self._remember(nonce, now_s)
        return True

    def _remember(self, nonce: str, now_s: float) -> None:
        self._seen[nonce] = now_s
        # Two windows: a call whose signed time is one window ahead of this clock is good for two.
        # The number is bounded for memory. A member that makes more calls than that in two windows
        # may see its oldest ones repeated by who has recorded them; nobody else has a nonce here.
        while self._seen:
            oldest = next(iter(self._seen))
            if (
                now_s - self._seen[oldest] <= 2 * CALL_WINDOW_S
                and len(self._seen) <= MAX_REMEMBERED_NONCES
            ):
                break
            del self._seen[oldest]
