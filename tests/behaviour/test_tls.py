"""TLS end to end, with certificates made here: both sides prove who they are, or nothing works."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress

import pytest

from serve_grpc.config import Settings
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import Owner, connect, new_call, serve
from tests.ray.waiting import eventually_async

x509 = pytest.importorskip("cryptography.x509")


class Authority:
    """A certificate authority that lives as long as a test."""

    def __init__(self, directory):
        from cryptography.hazmat.primitives.asymmetric import ec

        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        self.certificate = self._sign(self.name, self.key.public_key(), is_authority=True)

    def _sign(self, subject, public_key, *, is_authority):
        from cryptography.hazmat.primitives import hashes

        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if not is_authority:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def settings(self) -> Settings:
        """Settings of a member: a certificate for 127.0.0.1, its key, the authority."""
        from cryptography.hazmat.primitives import serialization as ser
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "member")])
        certificate = self._sign(name, key.public_key(), is_authority=False)
        files = {
            "cert": certificate.public_bytes(ser.Encoding.PEM),
            "key": key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()),
            "ca": self.certificate.public_bytes(ser.Encoding.PEM),
        }
        self.directory.mkdir(exist_ok=True)
        for file, data in files.items():
            (self.directory / file).write_bytes(data)
        return Settings(
            use_tls=True,
            tls_cert_path=str(self.directory / "cert"),
            tls_key_path=str(self.directory / "key"),
            tls_ca_path=str(self.directory / "ca"),
        )


def outcome(server_settings, caller_settings):
    """ "READY" with an answered call, or the state the connection ended in."""

    async def main():
        server, port, _ = await serve(server_settings)
        owner = Owner()
        connection = connect(port, owner, caller_settings)
        connection.connect()
        await eventually_async(lambda: connection.peer.state in (PeerState.READY, PeerState.LOST))
        state = connection.peer.state
        if state is PeerState.READY:
            call = new_call(owner, b"secret")
            connection.send(call)
            await call.wait_done()
            assert call.result() == b"secret"
        await connection.aclose()
        await server.stop(0)
        return state

    return asyncio.run(main())


def test_members_of_one_authority_talk(tmp_path):
    settings = Authority(tmp_path / "ca").settings()
    assert outcome(settings, settings) is PeerState.READY


def test_caller_without_tls_is_refused(tmp_path):
    assert outcome(Authority(tmp_path / "ca").settings(), Settings()) is PeerState.LOST


def test_server_without_tls_is_not_spoken_to(tmp_path):
    assert outcome(Settings(), Authority(tmp_path / "ca").settings()) is PeerState.LOST


def test_member_of_another_authority_is_refused(tmp_path):
    ours, theirs = (Authority(tmp_path / name).settings() for name in ("ours", "theirs"))
    assert outcome(ours, theirs) is PeerState.LOST


def test_missing_file_stops_the_start(tmp_path):
    settings = Settings(use_tls=True, tls_cert_path=str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match="RAY_TLS_SERVER_KEY"):
        asyncio.run(serve(settings))
    settings = Authority(tmp_path / "ca").settings()
    (tmp_path / "ca" / "cert").unlink()
    with pytest.raises(RuntimeError, match="RAY_TLS_SERVER_CERT"):
        asyncio.run(serve(settings))
