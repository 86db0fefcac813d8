"""The server's own key and certificate: made at the first start, kept, renewed when due.

Lies beside the CA: in the state directory, or in a Secret (see `host_state`). A certificate that
no longer fits (another public address, two thirds of its life over, another CA) is replaced, at
start or while the server runs; the key stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import Authority
from certs.chains import check_issuer, parse_certificate, pem, renewal_due_at
from certs.keys import (
    PrivateBytes,
    new_key,
    parse_private_key,
    private_pem,
    read_private,
    read_public,
    write_private,
    write_public,
)
from certs.names import ServerRole, parse_host, require_role

__all__ = [
    "CERTIFICATE_NAME",
    "KEY_NAME",
    "ServerIdentity",
    "fitting_identity",
    "server_identity",
]

KEY_NAME = "server.key"
CERTIFICATE_NAME = "server.crt"


@dataclass(frozen=True, kw_only=True)
class ServerIdentity:
    """Key and certificate of the server; no repr of the key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def chain_pem(self) -> bytes:
        return pem(self.certificate)

    @property
    def key_pem(self) -> PrivateBytes:
        return private_pem(self.key)

    def __repr__(self) -> str:
        return f"<ServerIdentity {self.certificate.serial_number:x}>"


def server_identity(
    directory: Path, authority: Authority, host_names: Sequence[str], now: datetime
) -> ServerIdentity:
    """Read the server's identity from files, or make what is missing or no longer fits.

    Raises:
        ValueError: If the key's file is damaged or others can read it, or a host name is
            none that a server can have.
        OSError: If a file cannot be read or written.
    """
    key = _key(directory / KEY_NAME)
    certificate_file = directory / CERTIFICATE_NAME
    kept = _read_certificate(certificate_file)
    identity = fitting_identity(key, kept, authority, host_names, now)
    if identity.certificate is not kept:
        write_public(certificate_file, pem(identity.certificate))
    return identity


def fitting_identity(
    key: ec.EllipticCurvePrivateKey,
    kept: x509.Certificate | None,
    authority: Authority,
    host_names: Sequence[str],
    now: datetime,
) -> ServerIdentity:
    """The identity with the certificate that is kept, or with a new one if that does not fit.

    Raises:
        ValueError: If a host name is none that a server can have.
    """
    wanted = frozenset(map(parse_host, host_names))
    if kept is not None and _fits(kept, authority, key, wanted, now):
        return ServerIdentity(key=key, certificate=kept)
    certificate = authority.issue_server(key.public_key(), sorted(wanted), now)
    return ServerIdentity(key=key, certificate=certificate)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        data = read_private(path)
    except FileNotFoundError:
        key = new_key()
        write_private(path, private_pem(key))
        return key
    try:
        return parse_private_key(data)
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}; remove the file and start again (a new key is made, and "
            "nobody has to join again)"
        ) from None


def _read_certificate(path: Path) -> x509.Certificate | None:
    try:
        return parse_certificate(read_public(path))
    except (FileNotFoundError, ValueError):
        return None  # a certificate is no secret and is made anew at no cost


def _fits(
    certificate: x509.Certificate,
    authority: Authority,
    key: ec.EllipticCurvePrivateKey,
    host_names: frozenset[str],
    now: datetime,
) -> bool:
    try:
        check_issuer(certificate, (authority.certificate,))
        require_role(certificate, ServerRole(zone=authority.zone))
    except ValueError:
        return False
    names = certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value
    return (
        certificate.public_key() == key.public_key()
        and host_names <= {str(name.value) for name in names}
        and certificate.not_valid_before_utc <= now < renewal_due_at(certificate)
    )
