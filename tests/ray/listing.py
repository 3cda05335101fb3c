"""What the control plane has told this process of a deployment's replicas."""

from __future__ import annotations

from typing import Any

__all__ = ["infos_of"]


def infos_of(handle: Any) -> list[Any]:
    """The `RunningReplicaInfo` of each replica in the newest list that reached a handle's router.

    Serve's own request router may not have taken that list (docs/decisions/0028).
    """
    router = handle._init_router()._asyncio_router
    lists = vars(router).get("_serve_grpc_lists")
    if lists is not None:
        return list(lists._newest)
    request_router = router._request_router
    if request_router is None:
        return []
    return [replica._replica_info for replica in request_router.curr_replicas.values()]
