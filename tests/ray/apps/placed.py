"""Replicas that know their node, and callers that are told over which transport to call them."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from typing import Any

import ray

import serve_grpc
from tests.ray.apps.gated import Gated
from tests.ray.compat.behaviours import BY_REFERENCE, OURS

__all__ = ["Caller", "Placed"]


class Placed(Gated):
    """Says where it runs; its `__call__` stays until the test lets it go, and notes the node."""

    async def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    async def __call__(self, path: str, name: str = "x") -> str:
        self._note(path, f"on-{await self.node()}", name)
        return await super().__call__(path, name)


class Caller:
    """Args: `placed`, Serve's handle (this deployment is a plain one); `other`, not used here."""

    def __init__(self, placed: Any, other: Any = None) -> None:
        # A handle takes this option once, before its first use: hence two.
        near = pickle.loads(pickle.dumps(placed)).options(_prefer_local_routing=True)
        self.handles = {"near": near, "any": placed}

    def _handle(self, transport: str, which: str) -> Any:
        serves = self.handles[which]
        handle = serve_grpc.wrap(serves) if transport == OURS else serves
        return handle.options(_by_reference=transport == BY_REFERENCE)

    async def nodes(self, transport: str, which: str, number: int) -> dict[str, int]:
        """How many calls, one after the other, each node or kind of error got."""
        handle = self._handle(transport, which)
        found: Counter[str] = Counter()
        for _ in range(number):
            try:
                found[await asyncio.wait_for(handle.node.remote(), 10)] += 1
            except Exception as error:
                found[type(error).__name__] += 1
        return dict(found)

    async def hold(self, transport: str, path: str, name: str) -> str:
        """A call to this node, as long as it has room, that stays."""
        result: str = await self._handle(transport, "near").remote(path, name)
        return result
