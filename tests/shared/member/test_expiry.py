"""When our credential ends.

Covered: certificates, tokens, both, neither, a chain, what is no certificate.
"""

import ssl
from datetime import UTC, datetime

import pytest

from shared.http.apiserver import ApiServer, Credential
from shared.member.expiry import credential_expires_at
from tests.fakes.dialling import the_zone
from tests.shared.http.test_apiserver import jwt

SOON = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
TOKEN = jwt({"exp": int(SOON.timestamp())})


@pytest.fixture(scope="module")
def chain() -> tuple[str, datetime]:
    """A chain whose own certificate ends before its CA's."""
    holder = the_zone().user()
    pem = holder.chain_pem + the_zone().ca_pem
    return pem.decode(), holder.certificate.not_valid_after_utc


def server(certificate: str | None = None, token: str = "") -> ApiServer:
    return ApiServer(
        host="h",
        port=1,
        tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        server_hostname="h",
        credential=Credential(token=token, monotonic=lambda: 0.0),
        certificate_pem=certificate,
    )


def test_the_first_end_counts(chain: tuple[str, datetime]) -> None:
    pem, ends = chain
    assert credential_expires_at(server()) is None
    assert credential_expires_at(server(pem)) == ends
    assert credential_expires_at(server(token=TOKEN)) == SOON
    assert credential_expires_at(server(pem, TOKEN)) == min(ends, SOON)
    assert credential_expires_at(server("no certificate", TOKEN)) == SOON
    assert credential_expires_at(server(pem, "opaque")) == ends
