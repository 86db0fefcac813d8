"""When what we prove ourselves with to an apiserver ends: for people who can do something about it."""

from datetime import datetime

from certs.chains import parse_certificates
from shared.http.apiserver import ApiServer

__all__ = ["credential_expires_at"]


def credential_expires_at(apiserver: ApiServer) -> datetime | None:
    """The first end of certificate and token; None if there is none, or somebody renews them."""
    ends = [apiserver.credential.expires_at]
    if apiserver.certificate_pem is not None:
        try:
            own, *_ = parse_certificates(apiserver.certificate_pem.encode())
        except ValueError:
            pass  # OpenSSL takes some that we cannot read; then we do not know
        else:
            ends.append(own.not_valid_after_utc)
    return min((end for end in ends if end is not None), default=None)
