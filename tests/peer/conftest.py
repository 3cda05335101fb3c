"""The replica that foreign peers talk to."""

from __future__ import annotations

from typing import NamedTuple

import pytest

import serve_grpc
from tests.ray.apps.bench import bench_app
from tests.ray.listing import infos_of


class Target(NamedTuple):
    """What a peer has to know."""

    address: str
    replica_id: str
    secret: bytes


@pytest.fixture(scope="session")
def bench(serve_instance):
    """By-value handle to the deployment of `target`."""
    app = bench_app()
    return serve_grpc.run(app, name="peer", route_prefix=None).options(_by_reference=False)


@pytest.fixture(scope="session")
def target(bench) -> Target:
    from serve_grpc._serve.cluster import cluster_secret

    facts = bench.replica.remote().result(timeout_s=20)
    (info,) = infos_of(bench)
    assert info.replica_id.unique_id == facts["replica_id"]
    address = info.replica_metadata["serve_grpc"]["address"]
    return Target(address, facts["replica_id"], cluster_secret())
