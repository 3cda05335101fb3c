"""The secrets of a cluster: the one in use, and the one before it while a rotation goes round.

A secret is named by a short digest of itself, so that a peer can say which one it holds without
telling it. Secrets are never shown: not by `repr`, and in no error.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator

__all__ = ["KEY_ID_BYTES", "Keyring", "key_id"]

KEY_ID_BYTES = 8


def key_id(secret: bytes) -> bytes:
    """Names the secret; says nothing about it."""
    # What proofs sign begins with the length of a part (`handshake._mac`), never with this text, so
    # the name of a secret cannot pass as a proof.
    return hmac.new(secret, b"serve_grpc key id", hashlib.sha256).digest()[:KEY_ID_BYTES]


class Keyring:
    """The secrets that are good now. One object for all who ask; its owner replaces what is in it.

    Args:
        secrets: The current one first.
    """

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        self._by_id: dict[bytes, bytes] = {}
        self.replace(secrets)

    def __repr__(self) -> str:
        return f"<Keyring of {len(self._by_id)}>"

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._by_id.values())

    @property
    def current(self) -> bytes:
        """The one to sign with. Only of a keyring that is not empty."""
        return next(iter(self._by_id.values()))

    def find(self, name: bytes) -> bytes | None:
        """The secret of this key id, the current one for an empty id; None if it is not here."""
        if not name:  # the peer does not name its secret; its proof shows which one it holds
            return next(iter(self._by_id.values()), None)
        return self._by_id.get(name)

    def replace(self, secrets: Iterable[bytes]) -> None:
        """Hold these from now on, and no others."""
        # Dicts keep their order, so the current one stays the first.
        self._by_id = {key_id(secret): secret for secret in secrets}
