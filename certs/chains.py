"""Certificates as text, who signed them, and whether they are valid now.

Tower's PKI is one level deep: a CA, and what it signs. "Belongs to us" is therefore one
signature check and no path building, which is where validators get things wrong.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from certs.keys import parse_pin, require_p256, spki_pin
from certs.names import UNREADABLE_EXTENSIONS

__all__ = [
    "check_issuer",
    "check_validity",
    "is_authority",
    "parse_certificate",
    "parse_certificates",
    "pem",
    "pinned_authority",
    "renewal_due_at",
    "spoken",
]


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates as PEM, in this order."""
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def parse_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """Read all certificates of a PEM bundle, at least one.

    Raises:
        ValueError: If there is none, or one of them is damaged.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(data))
    except ValueError as error:
        raise ValueError("there is no certificate in it, or a damaged one") from error


def parse_certificate(data: bytes) -> x509.Certificate:
    """Read the one certificate of a PEM text.

    Raises:
        ValueError: If there is none or more than one, or it is damaged.
    """
    certificates = parse_certificates(data)
    if len(certificates) != 1:
        raise ValueError(
            f"there are {len(certificates)} certificates in it instead of one"
        )
    return certificates[0]


def pinned_authority(data: bytes, pin: str) -> x509.Certificate:
    """The CA certificate with this pin, out of a PEM bundle from an unverified source.

    Raises:
        ValueError: If it is not in there: somebody else answered, or the CA is another one.
    """
    parse_pin(pin)
    for certificate in parse_certificates(data):
        if is_authority(certificate) and _pin_of(certificate) == pin:
            return certificate
    raise ValueError(
        "the CA of who answered is not the one that the join string pins: either the address "
        "leads to another server, or somebody is in between; check the address, and make a "
        "new join string if the server was set up anew"
    )


def check_issuer(
    certificate: x509.Certificate, authorities: Iterable[x509.Certificate]
) -> x509.Certificate:
    """Find the CA that signed a certificate; says nothing about dates or roles.

    Raises:
        ValueError: If none of them did.
    """
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        if is_authority(authority):
            return authority
    raise ValueError("the certificate was issued by another CA than this zone's")


def check_validity(certificate: x509.Certificate, now: datetime) -> None:
    """Check a certificate's dates.

    Raises:
        ValueError: If it is expired or not valid yet; says by how much.
    """
    if now > certificate.not_valid_after_utc:
        ago = spoken(now - certificate.not_valid_after_utc)
        raise ValueError(f"the certificate expired {ago} ago")
    if now < certificate.not_valid_before_utc:
        ahead = spoken(certificate.not_valid_before_utc - now)
        raise ValueError(
            f"the certificate becomes valid only in {ahead}: check the clock of this machine"
        )


def is_authority(certificate: x509.Certificate) -> bool:
    """True when the certificate is one that may sign others."""
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, *UNREADABLE_EXTENSIONS):
        return False
    return constraints.ca and usage.key_cert_sign


def renewal_due_at(certificate: x509.Certificate) -> datetime:
    """When to renew: after two thirds of its life, so that a third is left for retries."""
    begin = certificate.not_valid_before_utc
    return begin + (certificate.not_valid_after_utc - begin) * 2 / 3


def spoken(duration: timedelta) -> str:
    """A duration as a person would say it: its two largest units."""
    seconds = max(0, round(duration.total_seconds()))
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    said = [f"{count} {unit}" for count, unit in units if count]
    return " ".join(said[:2]) or "0 s"


def _pin_of(certificate: x509.Certificate) -> str | None:
    try:
        return spki_pin(require_p256(certificate.public_key()))
    except (ValueError, UnsupportedAlgorithm):
        return None
