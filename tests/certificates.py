"""Real certificates, made by a library: an authority of a test, and members that it vouches for."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec

from serve_grpc.config import Settings

__all__ = ["Authority"]


class Authority:
    """A certificate authority that lives as long as a test.

    Args:
        directory: Where its members' files go.
        hosts: Addresses that its members' certificates are for.
    """

    def __init__(self, directory: Path, hosts: tuple[str, ...] = ("127.0.0.1",)) -> None:
        self.directory = directory
        self._hosts = hosts
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("test authority")
        self._certificate = self._sign(self._name, self._key.public_key(), is_authority=True)

    def _sign(
        self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey, *, is_authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if not is_authority:
            names = [x509.IPAddress(ipaddress.ip_address(host)) for host in self._hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def settings(self) -> Settings:
        """Settings of a new member: a certificate, its key, the authority's certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_named("member"), key.public_key(), is_authority=False)
        files = {
            "cert": certificate.public_bytes(ser.Encoding.PEM),
            "key": key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()),
            "ca": self._certificate.public_bytes(ser.Encoding.PEM),
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

    def environ(self) -> dict[str, str]:
        """The same for a Ray, by its own variables."""
        settings = self.settings()
        return {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": settings.tls_cert_path,
            "RAY_TLS_SERVER_KEY": settings.tls_key_path,
            "RAY_TLS_CA_CERT": settings.tls_ca_path,
        }


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
