"""Throw-away certificates of a run: one CA, a server on 127.0.0.1, a client.

They stand for the member's own PKI and for the prototype's self-made certificate.
The tunnel's certificates come from Tower itself. ECDSA P-256 as Tower uses it, so
that handshake rows compare designs and not key sizes.
"""

import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["SERVER_NAME", "Certificates", "make_certificates", "write_private"]

SERVER_NAME = "127.0.0.1"
# A run takes minutes; nothing of it may be of use tomorrow.
LIFETIME = timedelta(hours=6)

_CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Paths of PEM files in the run's directory."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def make_certificates(directory: Path) -> Certificates:
    """Make all keys anew and write them, private ones 0600."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _issue("bench CA", ca_key, None, ca_key)
    server_key = ec.generate_private_key(ec.SECP256R1())
    server = _issue(SERVER_NAME, server_key, ca, ca_key)
    client_key = ec.generate_private_key(ec.SECP256R1())
    client = _issue("bench", client_key, ca, ca_key)
    return Certificates(
        ca=_write_certificate(directory / "ca.pem", ca),
        server=_write_certificate(directory / "server.pem", server),
        server_key=_write_key(directory / "server.key", server_key),
        client=_write_certificate(directory / "client.pem", client),
        client_key=_write_key(directory / "client.key", client_key),
    )


def write_private(path: Path, data: bytes) -> Path:
    """Write a new file that only its owner can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return path


def _issue(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            False,
        )
    )
    if issuer is None:
        # Python 3.13 verifies strictly (RFC 5280): a CA says that it signs certificates.
        builder = builder.add_extension(_CA_USAGE, True)
    if name == SERVER_NAME:
        address = x509.IPAddress(ipaddress.ip_address(SERVER_NAME))
        names = x509.SubjectAlternativeName([address, x509.DNSName("localhost")])
        builder = builder.add_extension(names, False)
    return builder.sign(issuer_key, hashes.SHA256())


def _write_certificate(path: Path, certificate: x509.Certificate) -> Path:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    return write_private(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
