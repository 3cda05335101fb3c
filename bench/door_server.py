"""The process that answers for bench/doors.py: two real servers, plaintext and TLS, and an echo."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from bench.growth_server import HOST, SECRET, answer_commands
from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.config import Settings
from serve_grpc.payload import joined
from serve_grpc.protocol.replica import Arrival
from serve_grpc.transport.secrets import ClusterSecrets
from serve_grpc.transport.server import PlainCall, ReplicaServer, SessionStream

__all__ = ["REPLICA_ID", "SECRET", "certificates", "run_server"]

REPLICA_ID = "the-replica"


class _Echo:
    """A `Dispatcher` that answers each request with its payload, at once."""

    def on_arrival(self, stream: SessionStream, arrival: Arrival) -> None:
        for request in arrival.requests:
            stream.session.reply(request.id, Reply.RESULT, joined(request.payload))
        stream.kick()

    def on_session_closed(self, stream: SessionStream, call_ids: list[int]) -> None:
        """Nothing is kept of a session."""

    def on_plain_call(self, call: PlainCall) -> None:
        call.put(call.request.payload)

    def on_plain_call_closed(self, call: PlainCall) -> None:
        """Nothing is kept of plain calls."""

    def ongoing(self) -> int:
        return 0

    def max_ongoing_requests(self) -> int:
        return 10_000

    def standby(self) -> int:
        return 0


def run_server(pipe: Pipe, secure: Settings) -> None:
    """Child process: send the ports of both servers, answer until the parent is gone."""
    asyncio.run(_run(pipe, secure))


async def _run(pipe: Pipe, secure: Settings) -> None:
    echo: Any = _Echo()
    secrets = ClusterSecrets(lambda: (SECRET,), (SECRET,))
    servers = [
        ReplicaServer(replica_id=REPLICA_ID, secrets=secrets, settings=settings, dispatcher=echo)
        for settings in (Settings(), secure)
    ]
    pipe.send([await server.start(HOST) for server in servers])
    await answer_commands(pipe)
    await asyncio.gather(*(server.stop(1.0) for server in servers))


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
