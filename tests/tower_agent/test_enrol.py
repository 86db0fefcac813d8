"""Joining over real TLS with the server's real routes: everything that goes well.

Covered: straight to the server, behind something that ends TLS, through an HTTP proxy, a lost
answer, passing errors, re-join, and starting again without the token.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from certs.authority import Authority
from certs.chains import parse_certificate, pem
from certs.joining import JoinRequest, JoinString, request_digest, sign_answer
from certs.keys import PrivateBytes, new_key, parse_private_key, private_pem, spki_pin
from certs.names import AgentRole, role_of
from shared.member.preflight import MemberFacts
from tests.fakes.http_proxy import http_proxy
from tests.fakes.join_server import JoinServer, join_server
from tests.fakes.tls_proxy import StrangeAuthority, tls_terminator
from tower_agent.credentials import Credentials, DirectoryStore
from tower_agent.enrol import (
    JoinFailed,
    JoinSettings,
    enrol,
    needs_join,
    obtain_credentials,
)
from tower_server.membership import agent_is_current

MEMBER = MemberFacts(uid="uid-a", apiserver_version="v1.34.1")
SETTINGS = JoinSettings(agent_version="0.1.0")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[JoinServer]:
    async with join_server(tmp_path / "ca") as running:
        yield running


def key_pem() -> PrivateBytes:
    return private_pem(new_key())


def forged(authority: Authority, body: dict[str, str]) -> str:
    """The answer of another server of the same zone to this request."""
    now = datetime.now(UTC)
    request = JoinRequest.from_dict(body)
    key = new_key()
    server = authority.issue_server(key.public_key(), ["127.0.0.1"], now)
    payload = {
        "certificate": pem(
            authority.issue_agent(request.csr, request.cluster, now)
        ).decode(),
        "ca": authority.pem.decode(),
        "zone": authority.zone,
        "cluster": request.cluster,
        "audience": "tower://clusters.tower.internal/server",
    }
    return sign_answer(
        key,
        [server, authority.certificate],
        payload,
        request_digest=request_digest(request),
        now=now,
    )


async def facts() -> MemberFacts:
    return MEMBER


async def must_not_ask() -> MemberFacts:
    raise AssertionError("an agent that has joined asks nobody")


async def test_an_agent_joins_straight_at_the_server(server: JoinServer) -> None:
    join = await server.invite("alpha")
    credentials = await enrol(join, MEMBER, key_pem(), SETTINGS)
    certificate = parse_certificate(credentials.certificate_pem)
    assert role_of(certificate) == AgentRole(
        zone="clusters.tower.internal", cluster=join.cluster
    )
    assert credentials.outer_mode == "tower"
    assert credentials.audience == "tower://clusters.tower.internal/server"
    assert credentials.ca_pem == server.authority.pem
    cluster = await server.store.get_cluster(join.cluster)
    assert cluster is not None
    assert (cluster.member_uid, cluster.agent_version) == ("uid-a", "0.1.0")
    assert cluster.agent_serial == certificate.serial_number
    assert server.requests == ["GET /join/ca", "POST /join/nonce", "POST /join"]
    assert server.service.outcomes == {"joined": 1}


async def test_whoever_ends_tls_never_sees_the_secret(server: JoinServer) -> None:
    company, heard = StrangeAuthority(), bytearray()
    context = company.server_context("127.0.0.1")
    async with tls_terminator(context, server.port, heard=heard) as port:
        join = await server.invite("alpha", port=port)
        settings = dataclasses.replace(SETTINGS, outer_ca_pem=company.pem)
        await enrol(join, MEMBER, key_pem(), settings)
    assert join.token_id.encode() in heard
    assert join.secret.reveal().encode() not in heard
    assert b"PRIVATE KEY" not in heard


async def test_behind_something_that_ends_tls_with_a_company_ca(
    server: JoinServer,
) -> None:
    company = StrangeAuthority()
    async with tls_terminator(company.server_context("127.0.0.1"), server.port) as port:
        join = await server.invite("alpha", port=port)
        settings = dataclasses.replace(SETTINGS, outer_ca_pem=company.pem)
        credentials = await enrol(join, MEMBER, key_pem(), settings)
    assert credentials.outer_mode == "custom"
    assert credentials.outer_ca_pem == company.pem


async def test_behind_something_that_ends_tls_with_a_public_certificate(
    server: JoinServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = StrangeAuthority()
    roots = tmp_path / "roots.pem"
    roots.write_bytes(public.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    async with tls_terminator(public.server_context("127.0.0.1"), server.port) as port:
        join = await server.invite("alpha", port=port)
        credentials = await enrol(join, MEMBER, key_pem(), SETTINGS)
    assert credentials.outer_mode == "system"
    assert credentials.outer_ca_pem is None


async def test_whoever_ends_tls_cannot_hand_the_agent_another_ca(
    server: JoinServer, tmp_path: Path
) -> None:
    company = StrangeAuthority()
    other = Authority.open_or_create(
        tmp_path / "other", "clusters.tower.internal", datetime.now(UTC)
    )

    async def answer_instead(request: web.Request) -> web.Response | None:
        # An answer in the right form, by another server of the same zone.
        if request.path != "/join":
            return None
        body = await request.json()
        return web.json_response({"answer": forged(other, body)})

    server.intercept = answer_instead
    async with tls_terminator(company.server_context("127.0.0.1"), server.port) as port:
        join = await server.invite("alpha", port=port)
        settings = dataclasses.replace(SETTINGS, outer_ca_pem=company.pem)
        with pytest.raises(JoinFailed, match="not to be trusted"):
            await enrol(join, MEMBER, key_pem(), settings)


async def test_through_an_http_proxy_with_a_login(server: JoinServer) -> None:
    async with http_proxy(login="me:pass@word") as proxy:
        join = await server.invite("alpha", host="tower.test")
        environ = {"HTTPS_PROXY": f"http://me:pass%40word@127.0.0.1:{proxy.port}"}
        settings = dataclasses.replace(SETTINGS, environ=environ)
        credentials = await enrol(join, MEMBER, key_pem(), settings)
    assert credentials.server_host == "tower.test"
    assert set(proxy.connected_to) == {f"tower.test:{server.port}"}


async def test_no_proxy_is_honoured(server: JoinServer) -> None:
    async with http_proxy(refuse_with=403) as proxy:
        join = await server.invite("alpha", host="127.0.0.1")
        environ = {
            "HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}",
            "NO_PROXY": "127.0.0.0/8",
        }
        await enrol(
            join, MEMBER, key_pem(), dataclasses.replace(SETTINGS, environ=environ)
        )


async def test_a_lost_answer_is_asked_for_again_and_is_the_same(
    server: JoinServer,
) -> None:
    join = await server.invite("alpha")
    lost: list[str] = []

    async def lose_the_first_answer(request: web.Request) -> web.Response | None:
        if request.path == "/join" and not lost:
            lost.append(await server.service.join(await request.json(), "127.0.0.1"))
            assert request.transport is not None
            request.transport.abort()
        return None

    server.intercept = lose_the_first_answer
    key = key_pem()
    credentials = await enrol(join, MEMBER, key, SETTINGS)
    assert len(lost) == 1
    again = await enrol(join, MEMBER, key, SETTINGS)
    assert again.certificate_pem == credentials.certificate_pem
    cluster = await server.store.get_cluster(join.cluster)
    serial = parse_certificate(credentials.certificate_pem).serial_number
    assert cluster is not None and cluster.agent_serial == serial


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/join/ca", 503, "<html>no backend</html>"),
        ("/join/nonce", 502, ""),
        ("/join", 503, '{"error": "store_unavailable", "message": "Later."}'),
        ("/join", 400, '{"error": "nonce_expired", "message": "Again."}'),
    ],
)
async def test_an_error_that_passes_is_outlived(
    server: JoinServer, path: str, status: int, body: str
) -> None:
    failures = [1, 2]

    async def fail_twice(request: web.Request) -> web.Response | None:
        if request.path == path and failures:
            failures.pop()
            return web.Response(status=status, text=body)
        return None

    server.intercept = fail_twice
    credentials = await enrol(await server.invite(), MEMBER, key_pem(), SETTINGS)
    assert credentials.cluster == "alpha" and not failures


async def test_cancelling_a_join_ends_it_at_once(server: JoinServer) -> None:
    asked = asyncio.Event()

    async def never_answer(request: web.Request) -> None:
        asked.set()
        await asyncio.Event().wait()

    server.intercept = never_answer
    join = await server.invite()
    async with asyncio.timeout(3):
        joining = asyncio.create_task(enrol(join, MEMBER, key_pem(), SETTINGS))
        await asked.wait()
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining


async def test_an_agent_that_has_joined_starts_without_token_server_and_member(
    server: JoinServer, tmp_path: Path
) -> None:
    store = DirectoryStore(tmp_path / "agent")
    join = await server.invite("alpha")
    credentials = await obtain_credentials(store, join, facts, SETTINGS)
    before = list(server.requests)
    for string in (None, join):
        assert (
            await obtain_credentials(store, string, must_not_ask, SETTINGS)
            == credentials
        )
    assert server.requests == before


async def test_without_credentials_and_string_the_agent_says_what_to_do(
    tmp_path: Path,
) -> None:
    with pytest.raises(JoinFailed, match="tower token create CLUSTER"):
        await obtain_credentials(
            DirectoryStore(tmp_path / "agent"), None, facts, SETTINGS
        )


async def test_a_new_token_means_a_rejoin_and_the_old_certificate_dies(
    server: JoinServer, tmp_path: Path
) -> None:
    store = DirectoryStore(tmp_path / "agent")
    first = await obtain_credentials(store, await server.invite(), facts, SETTINGS)
    second = await obtain_credentials(store, await server.invite(), facts, SETTINGS)
    assert second.key_pem != first.key_pem
    assert await store.load() == second
    cluster = await server.store.get_cluster(first.cluster)
    for credentials, good in ((first, False), (second, True)):
        key = parse_private_key(credentials.key_pem).public_key()
        assert agent_is_current(cluster, key_pin=spki_pin(key)) is good


async def test_a_failed_rejoin_under_the_same_name_leaves_the_member_connected(
    server: JoinServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DirectoryStore(tmp_path / "agent")
    first = await obtain_credentials(store, await server.invite(), facts, SETTINGS)
    revoked = await server.invite()
    await server.store.revoke_token(revoked.token_id, first.not_after)
    assert await obtain_credentials(store, revoked, facts, SETTINGS) == first
    assert "was revoked" in caplog.text


async def test_a_failed_join_under_another_name_is_a_failure(
    server: JoinServer, tmp_path: Path
) -> None:
    store = DirectoryStore(tmp_path / "agent")
    await obtain_credentials(store, await server.invite("alpha"), facts, SETTINGS)
    with pytest.raises(JoinFailed, match="already joined as 'alpha'"):
        await obtain_credentials(store, await server.invite("beta"), facts, SETTINGS)


async def test_an_agent_that_died_before_saving_joins_again_with_the_same_token(
    server: JoinServer, tmp_path: Path
) -> None:
    store = DirectoryStore(tmp_path / "agent")
    join = await server.invite()
    key = await store.pending_key(join.token_id)
    await enrol(join, MEMBER, key, SETTINGS)  # and the agent dies here
    restarted = DirectoryStore(tmp_path / "agent")
    credentials = await obtain_credentials(restarted, join, facts, SETTINGS)
    assert credentials.key_pem == key


@pytest.mark.parametrize("same_token", [True, False])
async def test_only_another_token_needs_a_join(
    server: JoinServer, same_token: bool
) -> None:
    join = await server.invite()
    stored = await enrol(join, MEMBER, key_pem(), SETTINGS)
    given: JoinString = join if same_token else await server.invite()
    assert needs_join(stored, given) is not same_token
    assert needs_join(None, given)
    assert not needs_join(stored, None)
    assert isinstance(stored, Credentials) and "PRIVATE" not in repr(stored)
