"""The certificate that a direct member's name is served with: made here, kept nowhere.

It is what an agent would have for the same name. It opens no tunnel: no join has issued it, so no
record of the store says that it is current.
"""

import ssl
from dataclasses import dataclass, field
from datetime import datetime

from certs.authority import Authority
from certs.chains import pem, renewal_due_at
from certs.contexts import sealed_server
from certs.keys import certificate_request, new_key, private_pem, spki_pin
from certs.names import ClusterName

__all__ = ["ServingCertificate", "new_serving_certificate"]


@dataclass(frozen=True, kw_only=True)
class ServingCertificate:
    """What the TLS end of a member shows."""

    zone: str
    serial: int
    key_pin: str
    not_after: datetime
    renewal_due_at: datetime
    context: ssl.SSLContext = field(repr=False)


def new_serving_certificate(
    authority: Authority, cluster: ClusterName, now: datetime
) -> ServingCertificate:
    """Make a key and a certificate for `cluster`.<zone>."""
    key = new_key()
    certificate = authority.issue_agent(certificate_request(key), cluster, now)
    return ServingCertificate(
        zone=authority.zone,
        serial=certificate.serial_number,
        key_pin=spki_pin(key.public_key()),
        not_after=certificate.not_valid_after_utc,
        renewal_due_at=renewal_due_at(certificate),
        context=sealed_server(pem(certificate), private_pem(key), authority.pem),
    )
