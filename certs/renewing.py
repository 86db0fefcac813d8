"""How an agent gets a new certificate for the key that it joined with.

It asks by an assertion of its present certificate, which may have ended: a member that was off for
weeks is not locked out. The answer is signed by the server and tied to the request, so that
neither TLS around it nor who ends that TLS has to be trusted; it also brings the CA bundle,
which during a rotation holds the new CA beside the old one.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509

from certs.chains import parse_certificate, parse_certificates
from certs.joining import BadProof, check_issued_agent, open_answer
from certs.keys import PrivateBytes, certificate_request, parse_private_key
from certs.names import ClusterName

__all__ = [
    "MAX_LATE",
    "RenewalRequest",
    "RenewedCertificate",
    "open_renewal",
]

# design.md, 3: an ended certificate of a known key may still be renewed for so long.
MAX_LATE = timedelta(days=90)

# A CSR for a P-256 key has some 300 bytes, an assertion with its certificate 2 KiB.
MAX_CSR_BYTES = 4 * 1024
MAX_ASSERTION_BYTES = 8 * 1024


@dataclass(frozen=True, kw_only=True)
class RenewalRequest:
    """What an agent sends. The assertion is for `certs.assertion.renewal_audience`."""

    assertion: str
    csr: bytes

    @classmethod
    def make(cls, key_pem: PrivateBytes, assertion: str) -> "RenewalRequest":
        """For the key that signed the assertion."""
        return cls(
            assertion=assertion, csr=certificate_request(parse_private_key(key_pem))
        )

    @property
    def digest(self) -> str:
        """What ties an answer to its request: SHA-256 in hex over all of it."""
        return hashlib.sha256(self.assertion.encode() + b"\n" + self.csr).hexdigest()

    def to_dict(self) -> dict[str, str]:
        return {
            "assertion": self.assertion,
            "csr": base64.b64encode(self.csr).decode("ascii"),
        }

    @classmethod
    def from_dict(cls, data: object) -> "RenewalRequest":
        """Read what `to_dict` wrote, or a stranger did.

        Raises:
            BadProof: If a field is missing, too long or of another kind.
        """
        fields: Mapping[str, Any] = data if isinstance(data, dict) else {}
        assertion, csr = fields.get("assertion"), fields.get("csr")
        if not isinstance(assertion, str) or len(assertion) > MAX_ASSERTION_BYTES:
            raise BadProof("malformed", "the renewal has no assertion, or a huge one")
        if not assertion.isascii() or not isinstance(csr, str):
            raise BadProof("malformed", "the renewal has no CSR, or no sound assertion")
        if len(csr) > 2 * MAX_CSR_BYTES:
            raise BadProof("malformed", "the renewal's CSR is huge")
        try:
            return cls(assertion=assertion, csr=base64.b64decode(csr, validate=True))
        except (binascii.Error, ValueError) as error:
            raise BadProof("malformed", "the renewal's CSR is not base64") from error


@dataclass(frozen=True, kw_only=True)
class RenewedCertificate:
    """What an agent got, checked."""

    certificate: x509.Certificate
    # The CA certificates to trust from now on.
    ca_pem: bytes


def open_renewal(
    answer: str,
    request: RenewalRequest,
    *,
    key_pem: PrivateBytes,
    cluster: ClusterName,
    authorities: Sequence[x509.Certificate],
    now: datetime,
) -> RenewedCertificate:
    """Open the server's answer, and check that it is what we asked for.

    Args:
        authorities: The CAs that the agent trusts; the server's answer leads to one of them.

    Raises:
        BadProof, ValueError: If somebody else answered, or to another request, or with a
            certificate for somebody else.
    """
    payload = _opened_by_any(answer, request, authorities, now)
    certificates, ca_pem = payload.get("certificate"), payload.get("ca")
    if not isinstance(certificates, str) or not isinstance(ca_pem, str):
        raise BadProof("malformed", "the server's answer lacks certificate or CA")
    certificate = parse_certificate(certificates.encode("ascii"))
    bundle = parse_certificates(ca_pem.encode("ascii"))
    own = parse_private_key(key_pem).public_key()
    last: ValueError | None = None
    # The new certificate may be of a CA that only this answer, which is proven, tells us of.
    for ca in bundle:
        try:
            check_issued_agent(
                certificate, public_key=own, cluster=cluster, ca=ca, now=now
            )
        except ValueError as error:
            last = error
        else:
            return RenewedCertificate(
                certificate=certificate, ca_pem=ca_pem.encode("ascii")
            )
    assert last is not None  # a bundle is never empty
    raise last


def _opened_by_any(
    answer: str,
    request: RenewalRequest,
    authorities: Sequence[x509.Certificate],
    now: datetime,
) -> dict[str, Any]:
    last: BadProof | None = None
    for ca in authorities:
        try:
            return open_answer(answer, request_digest=request.digest, now=now, ca=ca)
        except BadProof as error:
            last = error
    raise last or BadProof("issuer", "the agent knows no CA")
