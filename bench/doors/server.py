"""The process that answers for `measure.py`: an echo behind a plaintext, a TLS and a local door."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from bench.growth.server import answer_commands
from bench.stand_ins.echo import HOST, SECRET, Echo
from serve_grpc.carriers.grpc.serve import ReplicaServer
from serve_grpc.carriers.local.serve import LocalServer
from serve_grpc.config import Settings
from serve_grpc.entrance.secrets import ClusterSecrets

__all__ = ["REPLICA_ID", "certificates", "run_server"]

REPLICA_ID = "the-replica"


def run_server(pipe: Pipe, secure: Settings, lane_path: str) -> None:
    """Child process: send the ports of both servers, answer until the parent is gone.

    Args:
        lane_path: Where the first of them has its socket.
    """
    asyncio.run(_run(pipe, secure, lane_path))


async def _run(pipe: Pipe, secure: Settings, lane_path: str) -> None:
    echo: Any = Echo(max_ongoing_requests=10_000)
    secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
    servers = [
        ReplicaServer(replica_id=REPLICA_ID, secrets=secrets, settings=settings, dispatcher=echo)
        for settings in (Settings(), secure)
    ]
    lane = LocalServer(servers[0].host, Settings())
    lane.start(lane_path)
    pipe.send([await server.start(HOST) for server in servers])
    await answer_commands(pipe)
    await asyncio.gather(*(server.stop(1.0) for server in servers))
    await lane.stop()


def certificates(directory: Path) -> tuple[str, str]:
    """Write a certificate for loopback, which is its own authority, and its key; their paths."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchmark")])
    now, hour = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(hours=1)
    address = x509.IPAddress(ipaddress.ip_address(HOST))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - hour)
        .not_valid_after(now + hour)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    cert_path, key_path = directory / "cert.pem", directory / "key.pem"
    cert_path.write_bytes(certificate.public_bytes(pem))
    key_path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(cert_path), str(key_path)
