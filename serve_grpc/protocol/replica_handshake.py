"""The replica's side of a handshake: a challenge to a hello, and a look at the caller's proof.

Exists until the session is open; the session asks it what to say and makes the moves. Invariant:
there is one hello. It is answered at once, or again after the replica has looked for newer secrets
(`hear_hello_again`), if the caller holds one that is not known.
"""

from __future__ import annotations

from serve_grpc._generated.replica_pb2 import Challenge, Hello, Refusal, Welcome
from serve_grpc.protocol import handshake
from serve_grpc.protocol.handshake import HandshakeRefused
from serve_grpc.protocol.keyring import Keyring
from serve_grpc.protocol.places import LinkMemory

__all__ = ["ReplicaHandshake"]


class ReplicaHandshake:
    """What a replica says until a session is open.

    Args:
        replica_id: Unique id of this replica.
        keyring: The cluster's secrets; the caller says which one it holds.
        nonce: `NONCE_BYTES` fresh random bytes.
        epoch: The session's number at this replica.
        max_ongoing_requests: Told to the caller.
        max_message_bytes: Largest payload this side takes; told to the caller.
        takes_stored: Whether payloads may go by Ray's object store; told to the caller.
        input_credit: First credit of each input, in items and bytes; None if it takes none.

    Attributes:
        memory: What the link shares beside messages; None if nothing.
        must_drain: Whether the replica was told to drain meanwhile; the session does so when it
            opens.
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
        takes_stored: bool,
        input_credit: tuple[int, int] | None = None,
    ) -> None:
        self._replica_id = replica_id
        self._keyring = keyring
        self._nonce = nonce
        self._epoch = epoch
        self._welcome = Welcome(
            max_ongoing_requests=max_ongoing_requests, max_message_bytes=max_message_bytes
        )
        if takes_stored:
            self._welcome.features.append(handshake.STORED)
        if input_credit is not None:
            self._welcome.features.append(handshake.INPUTS)
            self._welcome.input_credit_items, self._welcome.input_credit_bytes = input_credit
        self._takes_stored = takes_stored
        self._hello: Hello | None = None
        self._secret = b""
        self.must_drain = False
        self.memory: LinkMemory | None = None

    @property
    def has_hello(self) -> bool:
        """Whether the caller has said who it is; it may do so once."""
        return self._hello is not None

    def caller_knows(self, feature: str) -> bool:
        """Whether its hello named a feature."""
        return self._hello is not None and feature in self._hello.features

    @property
    def stores_above(self) -> int | None:
        """Size above which results go by Ray's object store; None if no payload goes there."""
        hello = self._hello
        # The caller borrows as well: what a result is in reaches it as what it names does.
        needed = {handshake.LENT, handshake.STORED}
        if hello is None or not self._takes_stored or not needed <= set(hello.features):
            return None
        own = self._welcome.max_message_bytes
        return min(own, hello.max_message_bytes or own)

    def hear_hello(self, hello: Hello) -> Challenge | None:
        """The answer to a hello; None if the caller's secret is not known here.

        Raises:
            HandshakeRefused: There is no common version, another replica is meant, or the caller's
                nonce is no nonce.
        """
        # In this order: of a newer caller nothing but its versions is sure to be understood.
        if handshake.common_version(hello.min_version, hello.max_version) is None:
            raise HandshakeRefused(
                Refusal.VERSION,
                f"this replica speaks versions {handshake.MIN_VERSION} to "
                f"{handshake.MAX_VERSION}, the caller {hello.min_version} to {hello.max_version}",
            )
        if hello.replica_id != self._replica_id:
            # Written by a peer that has proved nothing: only the beginning of it is said back.
            text = f"this is not replica {hello.replica_id[:256]!r}"
            raise HandshakeRefused(Refusal.WRONG_REPLICA, text)
        if not handshake.NONCE_BYTES <= len(hello.nonce) <= handshake.MAX_NONCE_BYTES:
            raise HandshakeRefused(Refusal.PROTOCOL, "the nonce is too short or too long")
        # Kept even if its secret is not known yet: one hello is heard, and answered later.
        self._hello = hello
        return self._challenge(hello)

    def hear_hello_again(self) -> Challenge:
        """The answer to the same hello, with what the keyring holds by now.

        Raises:
            HandshakeRefused: The caller's secret is still not known.
        """
        assert self._hello is not None
        challenge = self._challenge(self._hello)
        if challenge is None:
            text = "the caller's secret is not this cluster's"
            raise HandshakeRefused(Refusal.UNAUTHENTICATED, text)
        return challenge

    def _challenge(self, hello: Hello) -> Challenge | None:
        secret = self._keyring.find(hello.key_id)
        if secret is None:
            return None
        # The proof is checked with this very secret: the keyring may be replaced before it comes.
        self._secret = secret
        mac = handshake.sign_session(
            secret, "replica", hello.nonce, self._nonce, self._replica_id, self._epoch
        )
        version = handshake.common_version(hello.min_version, hello.max_version)
        assert version is not None, "it was looked at when the hello came"
        return Challenge(version=version, nonce=self._nonce, epoch=self._epoch, mac=mac)

    def welcome(self, *, has_memory: bool) -> Welcome:
        """The message that opens the session, for a caller whose proof holds.

        Args:
            has_memory: Whether fragments may lie in shared memory.
        """
        self._welcome.features.append(handshake.BUFFERS)
        if has_memory:
            self._welcome.features.append(handshake.MEMORY)
        return self._welcome

    def check_proof(self, mac: bytes) -> None:
        """Look at the caller's proof.

        Raises:
            HandshakeRefused: It was not made with the secret, for this very session.
        """
        assert self._hello is not None
        signed = (self._hello.nonce, self._nonce, self._replica_id, self._epoch)
        if not handshake.verify_session(self._secret, mac, "caller", *signed):
            raise HandshakeRefused(Refusal.UNAUTHENTICATED, "the proof is wrong")
