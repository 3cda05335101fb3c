"""The key-value store of a Ray cluster, in memory."""

from __future__ import annotations

__all__ = ["KeyValueStore"]


class KeyValueStore:
    """As `ray.experimental.internal_kv`, by the two functions that are used; keeps its writes.

    Attributes:
        before_put: Called before each write, as another process that comes first; None for nobody.
        forgets: Whether nothing is kept.
    """

    def __init__(self) -> None:
        self.stored: dict[tuple[bytes, bytes], bytes] = {}
        self.writes: list[bytes] = []
        self.before_put: object = None
        self.forgets = False

    def _internal_kv_get(self, key: bytes, *, namespace: bytes) -> bytes | None:
        return self.stored.get((namespace, key))

    def _internal_kv_put(
        self, key: bytes, value: bytes, *, overwrite: bool, namespace: bytes
    ) -> bool:
        if callable(self.before_put):
            self.before_put()
        is_new = (namespace, key) not in self.stored
        if not self.forgets and (overwrite or is_new):
            self.stored[namespace, key] = value
            self.writes.append(value)
        return not is_new
