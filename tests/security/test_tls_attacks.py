"""TLS against those who come without a certificate, with a strange one, or with no TLS at all."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import ray
from ray import serve as ray_serve

import serve_grpc
from serve_grpc._generated.replica_pb2 import CallRequest
from serve_grpc.config import Settings
from tests.behaviour.serving import REPLICA_ID, SECRET, serve
from tests.certificates import Authority
from tests.peer.plain_client import CALL, PlainClient
from tests.ray.apps.guarded import Guarded
from tests.security.endpoints import OPTIONS

REQUEST = CallRequest(request_serializer="noop").SerializeToString()
FILES = {
    "RAY_TLS_SERVER_CERT": "tls_cert_path",
    "RAY_TLS_SERVER_KEY": "tls_key_path",
    "RAY_TLS_CA_CERT": "tls_ca_path",
}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def credentials(kind: str, ours: Settings, theirs: Settings) -> grpc.ChannelCredentials | None:
    """Of a caller that knows the secret, and trusts the replica."""
    if kind == "plaintext":
        return None
    root = read(ours.tls_ca_path)
    if kind == "no certificate":
        return grpc.ssl_channel_credentials(root)
    certified = theirs if kind == "foreign authority" else ours
    return grpc.ssl_channel_credentials(
        root, read(certified.tls_key_path), read(certified.tls_cert_path)
    )


@pytest.mark.parametrize("kind", ["member", "plaintext", "no certificate", "foreign authority"])
def test_only_a_certificate_of_the_authority_gets_to_say_anything(
    authority: Authority, tmp_path: Path, kind: str
) -> None:
    ours, theirs = authority.settings(), Authority(tmp_path / "theirs").settings()

    async def main() -> grpc.StatusCode:
        server, port, _ = await serve(ours)
        presented = credentials(kind, ours, theirs)
        address = f"127.0.0.1:{port}"
        channel = (
            grpc.aio.insecure_channel(address)
            if presented is None
            else grpc.aio.secure_channel(address, presented)
        )
        client = PlainClient("127.0.0.1:1", REPLICA_ID, SECRET)  # for its proof, which is right
        call = channel.unary_unary(CALL, request_serializer=None, response_deserializer=None)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(REQUEST, metadata=client.proof(CALL, REQUEST), timeout=10)
        await channel.close()
        client.close()
        await server.stop(0)
        return raised.value.code()

    # The dispatcher of `serve` answers a call that was let in with an INTERNAL error.
    expected = grpc.StatusCode.INTERNAL if kind == "member" else grpc.StatusCode.UNAVAILABLE
    assert asyncio.run(main()) is expected


@pytest.mark.parametrize("variable", FILES)
@pytest.mark.parametrize("state", ["not named", "not there", "a directory"])
def test_a_file_that_cannot_be_read_stops_the_start(
    authority: Authority, tmp_path: Path, variable: str, state: str
) -> None:
    path = {"not named": "", "not there": str(tmp_path / "no"), "a directory": str(tmp_path)}
    settings = dataclasses.replace(authority.settings(), **{FILES[variable]: path[state]})
    with pytest.raises(RuntimeError, match=variable):
        asyncio.run(serve(settings))


@pytest.mark.parametrize("variable", ["RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY"])
@pytest.mark.parametrize("content", [b"", b"no PEM at all"], ids=["empty", "garbage"])
def test_a_file_that_holds_no_key_or_certificate_stops_the_start(
    authority: Authority, variable: str, content: bytes
) -> None:
    settings = authority.settings()
    Path(getattr(settings, FILES[variable])).write_bytes(content)
    with pytest.raises(RuntimeError):
        asyncio.run(serve(settings))


def test_a_key_of_another_certificate_stops_the_start(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").settings()
    settings = dataclasses.replace(authority.settings(), tls_key_path=other.tls_key_path)
    with pytest.raises(RuntimeError):
        asyncio.run(serve(settings))


@pytest.mark.ray
def test_a_replica_without_its_key_does_not_start(serve_instance: None, tmp_path: Path) -> None:
    # For this replica alone: Ray itself would want TLS of the whole cluster.
    env = {"RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": "/no", "RAY_TLS_SERVER_KEY": "/no"}
    options = {**OPTIONS, "max_constructor_retry_count": 1}  # it fails each time
    app = serve_grpc.deployment(**options)(_with_tls(Guarded, env)).bind()
    with pytest.raises(RuntimeError):
        serve_grpc.run(app, name="keyless", route_prefix=None)
    status = ray_serve.status().applications["keyless"].deployments["Guarded"]
    assert "RAY_TLS_CA_CERT must be set" in status.message
    ray_serve.delete("keyless", _blocking=False)


def _with_tls(cls: type, env: dict[str, str]) -> type:
    """The class; its process' settings say that TLS is on."""

    def __init__(self: object) -> None:
        from serve_grpc.replica import endpoint

        endpoint.settings = Settings.from_environ(env)

    return type(cls.__name__, (cls,), {"__init__": __init__, "__module__": "__main__"})


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_an_application_on_a_ray_with_tls(run_script: Callable[..., str], tmp_path: Path) -> None:
    addresses = tuple({"127.0.0.1", ray.util.get_node_ip_address()})
    ours = Authority(tmp_path / "ours", addresses)
    foreign = Authority(tmp_path / "foreign", addresses).settings()
    certificate = {"FOREIGN_CERT": foreign.tls_cert_path, "FOREIGN_KEY": foreign.tls_key_path}
    run_script("tls", env={**ours.environ(), **certificate}, timeout_s=280)
