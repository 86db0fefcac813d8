"""A small certificate authority for test clusters, real and fake: nothing here is meant to protect anything.

It is apart from Tower's own `certs` package on purpose: the member's PKI is somebody
else's, and a mistake in ours must not hide in both.
"""

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["KeyPair", "TestAuthority", "write_secret"]

# Longer than any test run, shorter than what a forgotten key should be good for.
LIFETIME = datetime.timedelta(days=365)
# Certificates begin a little in the past: clocks of two processes may be read in either order.
BACKDATED = datetime.timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "KeyPair(...)"

    def write(self, stem: Path) -> None:
        """Write STEM.crt and STEM.key (0600)."""
        stem.with_name(stem.name + ".crt").write_bytes(self.certificate)
        write_secret(stem.with_name(stem.name + ".key"), self.key)


class TestAuthority:
    """A CA with its key in a folder: `ca.crt`, `ca.key`."""

    __test__ = False  # the name is not a test's

    def __init__(self, directory: Path, name: str) -> None:
        self.certificate_path = directory / "ca.crt"
        self.key_path = directory / "ca.key"
        self.key = new_key()
        self.certificate = self._sign(
            _subject(name, ()),
            self.key.public_key(),
            x509.BasicConstraints(ca=True, path_length=None),
            _key_usage(ca=True),
        )
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate_path.write_bytes(self.certificate_pem)
        write_secret(self.key_path, private_pem(self.key))

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue_server(self, name: str, hosts: list[str]) -> KeyPair:
        """A serving certificate for DNS names and IP addresses."""
        key = new_key()
        certificate = self._sign(
            _subject(name, ()),
            key.public_key(),
            x509.BasicConstraints(ca=False, path_length=None),
            _key_usage(ca=False),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]),
        )
        return KeyPair(certificate=_pem(certificate), key=private_pem(key))

    def issue_client(self, user: str, groups: tuple[str, ...] = ()) -> KeyPair:
        """A client certificate: Kubernetes takes the user from CN and the groups from O."""
        key = new_key()
        certificate = self._sign(
            _subject(user, groups),
            key.public_key(),
            x509.BasicConstraints(ca=False, path_length=None),
            _key_usage(ca=False),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        )
        return KeyPair(certificate=_pem(certificate), key=private_pem(key))

    def _sign(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        constraints: x509.BasicConstraints,
        *extensions: x509.ExtensionType,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        issuer = subject if constraints.ca else self.certificate.subject
        authority = self.key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LIFETIME)
            .add_extension(constraints, critical=True)
            # OpenSSL's strict checks (the default of Python 3.13) want both key identifiers.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), False
            )
        )
        for extension in extensions:
            critical = isinstance(extension, x509.KeyUsage)
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # The traditional form ("EC PRIVATE KEY"): kube-controller-manager's signers read no PKCS #8 EC keys everywhere.
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, from its first moment on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _subject(user: str, groups: tuple[str, ...]) -> x509.Name:
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*names, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
