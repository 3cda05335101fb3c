"""Where a replica listens: one address of one interface, and a port of the range that was given."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import psutil
import pytest
import ray

import serve_grpc
from serve_grpc.config import Settings
from tests.behaviour.serving import serve
from tests.ray.apps.guarded import Guarded
from tests.security.endpoints import OPTIONS, deployed, targets_of

FAMILIES = (socket.AF_INET, socket.AF_INET6)
MORE_OF_LOOPBACK = ("127.0.0.2", "127.255.255.254")
"""All of 127.0.0.0/8 is this machine's; a server on every interface answers there too."""


def addresses() -> Iterator[str]:
    """Every address of this machine."""
    yield from MORE_OF_LOOPBACK
    for interface in psutil.net_if_addrs().values():
        yield from (entry.address for entry in interface if entry.family in FAMILIES)


def answering(port: int) -> set[str]:
    """The addresses of this machine at which something listens on the port."""
    found = set()
    for address in addresses():
        try:
            with socket.create_connection((address, port), timeout=2):
                found.add(address)
        except OSError:
            continue
    return found


def listening(port: int) -> set[str]:
    """The addresses that sockets of the machine are bound to on the port."""
    connections = psutil.net_connections(kind="tcp")
    found = {c.laddr.ip for c in connections if c.status == "LISTEN" and c.laddr.port == port}
    # gRPC's sockets are of the IPv6 family, also for an address of the other one.
    return {address.removeprefix("::ffff:") for address in found}


def with_env(**variables: str) -> dict[str, object]:
    env = {"env_vars": variables}
    return {**OPTIONS, "ray_actor_options": {"num_cpus": 0.01, "runtime_env": env}}


def test_a_scan_sees_a_server_on_every_interface() -> None:
    """What the other tests rest on: that such a server would be noticed."""

    async def main() -> set[str]:
        server, port, _ = await serve(host="0.0.0.0")
        seen = await asyncio.get_running_loop().run_in_executor(None, answering, port)
        await server.stop(0)
        return seen

    assert {*MORE_OF_LOOPBACK, "127.0.0.1"} <= asyncio.run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_a_server_answers_at_its_address_alone(host: str) -> None:
    async def main() -> tuple[set[str], set[str]]:
        server, port, _ = await serve(host=host)
        loop = asyncio.get_running_loop()
        seen = await loop.run_in_executor(None, answering, port)
        bound = await loop.run_in_executor(None, listening, port)
        await server.stop(0)
        return seen, bound

    assert asyncio.run(main()) == ({host}, {host})


def test_a_port_in_use_is_not_shared() -> None:
    async def main() -> None:
        server, port, _ = await serve()
        with pytest.raises(RuntimeError, match="no free port"):
            await serve(Settings(min_port=port, max_port=port))
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
        await server.stop(0)

    asyncio.run(main())


@pytest.mark.ray
def test_a_replica_listens_on_its_nodes_address(serve_instance: None) -> None:
    with deployed(serve_grpc.deployment(**OPTIONS)(Guarded).bind(), "scanned") as handle:
        (target,) = targets_of(handle)
        host, port = target.address.rsplit(":", 1)
        assert host == ray.util.get_node_ip_address()
        assert answering(int(port)) == listening(int(port)) == {host}


@pytest.mark.ray
def test_a_replica_listens_where_it_is_told(serve_instance: None) -> None:
    low = 23_000
    variables = {
        "SERVE_GRPC_BIND_HOST": "127.0.0.2",
        "SERVE_GRPC_MIN_PORT": f"{low}",
        "SERVE_GRPC_MAX_PORT": f"{low + 50}",
    }
    app = serve_grpc.deployment(num_replicas=2, **with_env(**variables))(Guarded).bind()
    with deployed(app, "told") as handle:
        targets = targets_of(handle)
        ports = {int(target.address.rsplit(":", 1)[1]) for target in targets}
        assert len(ports) == 2
        for port in ports:
            assert low <= port <= low + 50
            assert answering(port) == listening(port) == {"127.0.0.2"}
        assert handle.remote(1).result(timeout_s=20) == 1
