"""Renewing an agent's certificate: the request's form, and that only our server's answer is believed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from certs.assertion import make_assertion, renewal_audience
from certs.authority import Authority
from certs.chains import pem
from certs.joining import BadProof, sign_answer
from certs.keys import (
    PrivateBytes,
    certificate_request,
    new_key,
    parse_private_key,
    private_pem,
)
from certs.names import parse_cluster_name
from certs.renewing import MAX_CSR_BYTES, RenewalRequest, open_renewal

ZONE = "clusters.tower.internal"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
ALPHA, BETA = parse_cluster_name("alpha"), parse_cluster_name("beta")


class Site:
    """A CA with its server, and an agent that renews."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority.open_or_create(directory, ZONE, NOW)
        self.server_key = new_key()
        self.server = self.authority.issue_server(
            self.server_key.public_key(), ["127.0.0.1"], NOW
        )
        self.key_pem: PrivateBytes = private_pem(new_key())
        self.request = self.make_request()

    def certificate(
        self, key_pem: bytes | None = None, cluster: str = "alpha"
    ) -> x509.Certificate:
        csr = certificate_request(parse_private_key(key_pem or self.key_pem))
        return self.authority.issue_agent(csr, parse_cluster_name(cluster), NOW)

    def make_request(self) -> RenewalRequest:
        assertion = make_assertion(
            parse_private_key(self.key_pem),
            [self.certificate()],
            renewal_audience(ZONE),
            NOW,
            "0" * 32,
        )
        return RenewalRequest.make(self.key_pem, assertion)

    def answer(self, certificate: x509.Certificate, digest: str | None = None) -> str:
        payload = {
            "certificate": pem(certificate).decode(),
            "ca": self.authority.pem.decode(),
        }
        return sign_answer(
            self.server_key,
            [self.server, self.authority.certificate],
            payload,
            request_digest=digest or self.request.digest,
            now=NOW,
        )

    def open(self, answer: str, now: datetime = NOW) -> x509.Certificate:
        return open_renewal(
            answer,
            self.request,
            key_pem=self.key_pem,
            cluster=ALPHA,
            authorities=[self.authority.certificate],
            now=now,
        ).certificate


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "ca")


def test_a_request_survives_the_wire(site: Site) -> None:
    assert RenewalRequest.from_dict(site.request.to_dict()) == site.request


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"assertion": "x"},
        {"assertion": 1, "csr": ""},
        {"assertion": "x", "csr": "no base64"},
        {"assertion": "\u00e4", "csr": ""},
        {"assertion": "x" * 9000, "csr": ""},
        {"assertion": "x", "csr": "A" * (2 * MAX_CSR_BYTES + 4)},
    ],
)
def test_a_stranger_s_request_is_refused(data: object) -> None:
    with pytest.raises(BadProof):
        RenewalRequest.from_dict(data)


def test_the_server_s_answer_is_taken(site: Site) -> None:
    certificate = site.certificate()
    assert site.open(site.answer(certificate)) == certificate


def test_a_certificate_for_another_key_or_cluster_is_not(site: Site) -> None:
    for certificate in (
        site.certificate(private_pem(new_key())),
        site.certificate(cluster="beta"),
    ):
        with pytest.raises(ValueError, match="another key|not for an agent of alpha"):
            site.open(site.answer(certificate))


def test_an_answer_to_another_request_is_not(site: Site) -> None:
    with pytest.raises(BadProof, match="another request"):
        site.open(site.answer(site.certificate(), digest="0" * 64))


def test_another_authority_s_answer_is_not(site: Site, tmp_path: Path) -> None:
    stranger = Site(tmp_path / "other")
    answer = stranger.answer(stranger.certificate(site.key_pem), site.request.digest)
    with pytest.raises(BadProof):
        site.open(answer)


def test_an_old_answer_is_not(site: Site) -> None:
    answer = site.answer(site.certificate())
    with pytest.raises(BadProof):
        site.open(answer, NOW + timedelta(hours=1))
