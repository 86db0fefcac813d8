"""The server's side of a renewal: who gets a new certificate, and who does not, and why.

Covered: in time and up to 90 days late; a removed cluster, a later join, another key, a tunnel's
assertion, a replay, an unknown CA; guesses are slowed down.
"""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.assertion import assertion_audience, make_assertion, renewal_audience
from certs.chains import parse_certificates
from certs.keys import new_key, parse_private_key, private_pem
from certs.renewing import MAX_LATE, RenewalRequest, open_renewal
from shared.member.preflight import MemberFacts
from tests.fakes.join_server import JoinServer, join_server
from tower_agent.credentials import Credentials, DirectoryStore
from tower_agent.enrol import JoinSettings, obtain_credentials
from tower_server.answers import AnswerSigner
from tower_server.membership import JoinRefused, Refusal
from tower_server.renewal import RenewalService

ZONE = "clusters.tower.internal"
SOURCE = "192.0.2.1"
DAY = timedelta(days=1)


class Site:
    """A server, an agent that has joined, and a clock that is set by hand."""

    def __init__(self, server: JoinServer, credentials: Credentials) -> None:
        self.server = server
        self.credentials = credentials
        self.now = datetime.now(UTC)
        key = new_key()
        certificate = server.authority.issue_server(
            key.public_key(), ["127.0.0.1"], self.now
        )
        self.signer = AnswerSigner(server.authority, key, certificate)
        self.service = RenewalService(
            authority=server.authority,
            store=server.store,
            signer=self.signer,
            now=lambda: self.now,
            monotonic=lambda: 0.0,
        )
        self._jti = 0

    def request(
        self, *, audience: str | None = None, key_pem: bytes | None = None
    ) -> RenewalRequest:
        self._jti += 1
        own = parse_private_key(self.credentials.key_pem)
        assertion = make_assertion(
            own,
            parse_certificates(self.credentials.certificate_pem),
            audience or renewal_audience(ZONE),
            self.now,
            f"{self._jti:032d}",
        )
        made = RenewalRequest.make(self.credentials.key_pem, assertion)
        if key_pem is None:
            return made
        other = RenewalRequest.make(private_pem(new_key()), assertion)
        return RenewalRequest(assertion=assertion, csr=other.csr)

    def renew_server(self) -> None:
        """As the server does for itself, by the clock."""
        key = new_key()
        certificate = self.server.authority.issue_server(
            key.public_key(), ["127.0.0.1"], self.now
        )
        self.signer.renew(key, certificate)

    async def refusal(self, data: object) -> JoinRefused:
        with pytest.raises(JoinRefused) as caught:
            await self.service.renew(data, SOURCE)
        return caught.value


async def facts() -> MemberFacts:
    return MemberFacts(uid="uid-a", apiserver_version="v1.37.0")


@pytest.fixture
async def site(tmp_path: Path):
    async with join_server(tmp_path / "ca") as server:
        settings = JoinSettings(agent_version="0.2.0")
        store = DirectoryStore(tmp_path / "agent")
        credentials = await obtain_credentials(
            store, await server.invite(), facts, settings
        )
        yield Site(server, credentials)


@pytest.mark.parametrize("later", [0 * DAY, 25 * DAY, 31 * DAY, 119 * DAY])
async def test_a_known_key_gets_a_certificate_also_when_its_own_has_ended(
    site: Site, later: timedelta
) -> None:
    site.now += later
    site.renew_server()
    request = site.request()
    answer = await site.service.renew(request.to_dict(), SOURCE)
    got = open_renewal(
        answer,
        request,
        key_pem=site.credentials.key_pem,
        cluster=site.credentials.cluster,
        authorities=[site.server.authority.certificate],
        now=site.now,
    )
    assert site.now + 25 * DAY < got.certificate.not_valid_after_utc
    assert got.ca_pem == site.server.authority.pem


async def test_after_ninety_days_it_is_too_late(site: Site) -> None:
    site.now = site.credentials.not_after + MAX_LATE + timedelta(minutes=1)
    refusal = await site.refusal(site.request().to_dict())
    assert refusal.code is Refusal.BAD_REQUEST and "expired" in str(refusal)


async def test_a_removed_cluster_is_not_renewed(site: Site) -> None:
    await site.server.store.remove_cluster(site.credentials.cluster, site.now)
    refusal = await site.refusal(site.request().to_dict())
    assert refusal.code is Refusal.CLUSTER_REMOVED
    assert "tower token create alpha" in str(refusal)


async def test_a_key_that_a_later_join_replaced_is_not_renewed(
    site: Site, tmp_path: Path
) -> None:
    settings = JoinSettings(agent_version="0.2.0")
    store = DirectoryStore(tmp_path / "newer")
    await obtain_credentials(store, await site.server.invite(), facts, settings)
    refusal = await site.refusal(site.request().to_dict())
    assert refusal.code is Refusal.CERTIFICATE_REPLACED


async def test_no_certificate_is_given_for_another_key(site: Site) -> None:
    refusal = await site.refusal(site.request(key_pem=b"other").to_dict())
    assert "another key" in str(refusal)


async def test_an_assertion_for_a_tunnel_renews_nothing(site: Site) -> None:
    request = site.request(audience=assertion_audience(ZONE))
    refusal = await site.refusal(request.to_dict())
    assert "another purpose" in str(refusal)


async def test_each_assertion_is_good_once(site: Site) -> None:
    request = site.request().to_dict()
    await site.service.renew(request, SOURCE)
    assert "used before" in str(await site.refusal(request))


async def test_guesses_are_slowed_down_and_counted(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    codes = [(await site.refusal({})).code for _ in range(100)]
    assert codes[0] is Refusal.BAD_REQUEST and codes[-1] is Refusal.SLOW_DOWN
    assert len(caplog.records) == site.service.outcomes[Refusal.BAD_REQUEST] < 100
