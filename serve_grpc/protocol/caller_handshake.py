"""The caller's side of a handshake: a hello, and a proof once the replica has proved itself.

Exists until the session is open; the session asks it what to say and makes the moves. Invariant:
nothing is proved to a peer that has not proved itself first, so a caller that was sent to the wrong
address gives nothing away that is good anywhere else.
"""

from __future__ import annotations

from serve_grpc._generated.replica_pb2 import Challenge, Hello, Refusal
from serve_grpc.protocol import handshake
from serve_grpc.protocol.handshake import HandshakeRefused
from serve_grpc.protocol.keyring import key_id
from serve_grpc.protocol.places import LinkMemory

__all__ = ["CallerHandshake"]


class CallerHandshake:
    """What a caller says until its session is open.

    Args:
        replica_id: Unique id of the replica meant.
        secret: The cluster's secret.
        nonce: `NONCE_BYTES` fresh random bytes.
        max_message_bytes: Largest reply payload this side takes; told to the replica.
        takes_stored: Whether payloads may go by Ray's object store; told to the replica.

    Attributes:
        memory: What the link shares beside messages; None if nothing.
    """

    def __init__(
        self,
        *,
        replica_id: str,
        secret: bytes,
        nonce: bytes,
        max_message_bytes: int,
        takes_stored: bool,
    ) -> None:
        self._replica_id = replica_id
        self._secret = secret
        self._nonce = nonce
        self._max_message_bytes = max_message_bytes
        self._takes_stored = takes_stored
        self.memory: LinkMemory | None = None

    def write_hello(self, hello: Hello) -> None:
        """Fill in the first message."""
        hello.min_version, hello.max_version = handshake.MIN_VERSION, handshake.MAX_VERSION
        hello.replica_id, hello.nonce = self._replica_id, self._nonce
        # While a secret is being replaced there are two; the replica looks for this one.
        hello.key_id = key_id(self._secret)
        # Without this the replica tells nobody of the refs that its replies name, and holds them
        # for as long as it lives (docs/decisions/0016-lent-references.md).
        hello.features.append(handshake.LENT)
        hello.features.append(handshake.BUFFERS)
        if self._takes_stored:
            hello.features.append(handshake.STORED)
        hello.max_message_bytes = self._max_message_bytes

    def prove(self, challenge: Challenge) -> bytes:
        """The caller's proof, for a challenge that holds.

        Raises:
            HandshakeRefused: The replica chose a version that this side did not offer, or does not
                hold the secret.
        """
        signed = (self._nonce, challenge.nonce, self._replica_id, challenge.epoch)
        # Before the mac: another version may sign other things, and the reason told would be wrong.
        if not handshake.MIN_VERSION <= challenge.version <= handshake.MAX_VERSION:
            raise HandshakeRefused(Refusal.VERSION, f"the replica chose {challenge.version}")
        if not handshake.verify_session(self._secret, challenge.mac, "replica", *signed):
            raise HandshakeRefused(Refusal.UNAUTHENTICATED, "the replica's proof is wrong")
        return handshake.sign_session(self._secret, "caller", *signed)
