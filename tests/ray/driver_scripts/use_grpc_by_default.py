"""With RAY_SERVE_USE_GRPC_BY_DEFAULT=1 handles speak gRPC; a handle's own option overrides it.

The variable is for those who call, so the Ray that is joined need not have it.
"""

from __future__ import annotations

from ray import serve

import serve_grpc
from tests.ray.apps.plain import Plain
from tests.ray.scripts import joined_ray


def main() -> None:
    with joined_ray():
        app = serve_grpc.deployment(ray_actor_options={"num_cpus": 0.01})(Plain).bind()
        handle = serve_grpc.run(app, name="by-default", route_prefix=None)
        response = handle.remote(1)
        assert not response.by_reference
        assert response.result(timeout_s=20) == 1
        stream = handle.options(method_name="items", stream=True).remote(2)
        assert not stream.by_reference
        assert list(stream) == [0, 1]
        other = handle.options(_by_reference=True).remote(2)
        assert other.by_reference
        assert other.result(timeout_s=20) == 2
        serve.delete("by-default", _blocking=False)


if __name__ == "__main__":
    main()
