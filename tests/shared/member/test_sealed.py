"""Who gets in on the sealed face, through a real tunnel with real TLS on both event loops.

Covered: user certificates of this and other clusters, every other role, strangers, expired and
missing certificates, TLS 1.2, clients that speak only HTTP/2, when the front door is told that
the caller is known, the limit of handshakes, long heads, the end.
"""

import asyncio
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import NameOID

from certs.contexts import sealed_client, sealed_server
from certs.keys import new_key
from certs.names import AdminRole
from shared.errors import StreamReset
from shared.http.apiserver import ApiServer, Credential
from shared.http.heads import MAX_HEAD_BYTES
from shared.http.identity import Policy
from shared.http.upstream import UpstreamPool
from shared.member.sealed import SealedFace
from shared.mux.windows import INITIAL_WINDOW_BYTES
from tests.certs.zone import ALPHA, BETA, NOW, ZONE, Holder, Zone
from tests.fakes.dialling import LOOPBACK, agent, credentials, the_zone
from tests.fakes.host_side import until
from tests.fakes.tunnel_pair import TunnelPair, both_loops
from tests.fakes.upstream import RawUpstream, echo_heads

NAME = f"alpha.{ZONE}"
GET = b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n"


class Site:
    """A sealed face behind a tunnel; clients come in where the front door would let them."""

    def __init__(
        self, pair: TunnelPair, upstream: RawUpstream, face: SealedFace
    ) -> None:
        self.pair = pair
        self.upstream = upstream
        self.face = face

    @property
    def is_known(self) -> bool:
        """The server has heard that the caller is authenticated."""
        return bool(self.pair.server_owner.accepted)

    async def get(self, context: ssl.SSLContext, request: bytes = GET) -> bytes:
        """One request; what comes until the answer is complete or the connection ends."""
        reader, writer = await asyncio.open_connection(
            LOOPBACK, self.pair.entry_port, ssl=context, server_hostname=NAME
        )
        try:
            async with asyncio.timeout(5):
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2]
                return head + await reader.readexactly(int(length.split(b"\r\n")[0]))
        finally:
            writer.transport.abort()

    async def status(self, context: ssl.SSLContext) -> dict[str, object]:
        """The Status object that a caller gets as its answer."""
        head, _, body = (await self.get(context)).partition(b"\r\n\r\n")
        status = json.loads(body)
        assert status["kind"] == "Status"
        assert head.startswith(b"HTTP/1.1 %d " % status["code"])
        return status


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    async with RawUpstream(echo_heads) as upstream, TunnelPair() as pair:
        apiserver = ApiServer(
            host=LOOPBACK,
            port=upstream.port,
            tls=None,
            server_hostname=None,
            credential=Credential(token="agents-own", monotonic=lambda: 0.0),
        )
        pool = UpstreamPool(apiserver, loop=asyncio.get_running_loop())
        policy = Policy(
            users=frozenset({"tower:admin"}), groups=frozenset({"tower:cluster-admins"})
        )
        own = credentials(1)
        face = SealedFace(
            sealed_server(own.certificate_pem, own.key_pem, own.ca_pem),
            cluster=own.cluster,
            zone=own.zone,
            policy=policy,
            pool=pool,
        )
        pair.agent_owner.on_stream = face.open
        try:
            yield Site(pair, upstream, face)
        finally:
            face.close("the test is over")
            await pool.close()
            assert face._gate.half_open == 0


def client(holder: Holder) -> ssl.SSLContext:
    return sealed_client(holder.chain_pem, holder.key_pem, the_zone().ca_pem)


def admin() -> Holder:
    """Nobody issues these yet."""
    key = new_key()
    certificate = the_zone().authority._issue(
        key.public_key(),
        AdminRole(zone=ZONE),
        subject=[(NameOID.COMMON_NAME, "admin")],
        hosts=[],
        lifetime=timedelta(hours=1),
        now=NOW,
    )
    return Holder(key, certificate)


@both_loops
async def test_a_user_of_this_cluster_reaches_the_apiserver_as_himself() -> None:
    async with site() as here:
        for clusters in ((ALPHA,), (BETA, ALPHA), None):
            heard = await here.get(client(the_zone().user(clusters=clusters)))
            assert b"GET /api HTTP/1.1\r\n" in heard
            assert b"Impersonate-User: tower:admin\r\n" in heard
            assert b"Impersonate-Group: tower:cluster-admins\r\n" in heard
            assert b"Authorization: Bearer agents-own\r\n" in heard
        await until(lambda: len(here.pair.server_owner.accepted) == 3)


@both_loops
async def test_a_user_of_another_cluster_is_told_where_to_get_a_kubeconfig() -> None:
    async with site() as here:
        status = await here.status(client(the_zone().user(clusters=(BETA,))))
        assert (status["code"], status["reason"]) == (403, "Forbidden")
        assert "`tower kubeconfig alpha`" in str(status["message"])
        assert not here.upstream.connections


@both_loops
async def test_the_certificate_of_an_agent_a_server_or_an_admin_is_no_users() -> None:
    async with site() as here:
        others = {
            "agent/alpha": agent(),
            "agent/beta": agent(BETA),
            "server": the_zone().server(),
            "admin": admin(),
        }
        for role, holder in others.items():
            status = await here.status(client(holder))
            assert (status["code"], status["reason"]) == (401, "Unauthorized")
            assert f"/{role}; a user certificate is needed" in str(status["message"])
            assert "tower kubeconfig" in str(status["message"])
        assert not here.upstream.connections


@both_loops
async def test_a_user_whom_the_member_does_not_admit_is_named() -> None:
    async with site() as here:
        status = await here.status(client(the_zone().user(user="bob", groups=())))
        assert status["code"] == 403
        assert "--allow-user bob" in str(status["message"])
        assert not here.upstream.connections


async def refused(here: Site, context: ssl.SSLContext) -> str:
    """The TLS alert of a handshake that fails. In TLS 1.3 the client learns it when it reads."""
    with pytest.raises(
        (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)
    ) as raised:
        await here.get(context)
    await until(lambda: here.face._gate.half_open == 0)
    assert not here.is_known and not here.upstream.connections
    error = raised.value
    return str(getattr(error, "reason", None) or error.__cause__ or error)


@both_loops
async def test_certificates_that_tls_refuses_get_an_alert_that_says_why() -> None:
    with tempfile.TemporaryDirectory() as directory:
        other_ca = Zone(Path(directory) / "ca")
    stranger = other_ca.user()
    no_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    no_certificate.load_verify_locations(cadata=the_zone().ca_pem.decode())
    async with site() as here:
        assert (
            "ALERT_CERTIFICATE_REQUIRED"
            in (await refused(here, no_certificate)).upper()
        )
        assert "UNKNOWN_CA" in (await refused(here, client(stranger))).upper()


@both_loops
async def test_an_expired_certificate_gets_the_alert_that_says_so() -> None:
    async with site() as here:
        spent = the_zone().user(
            ttl=timedelta(minutes=1), now=NOW - timedelta(minutes=10)
        )
        assert "CERTIFICATE_EXPIRED" in (await refused(here, client(spent))).upper()


@both_loops
async def test_tls_1_2_is_refused_by_its_version() -> None:
    async with site() as here:
        context = client(the_zone().user())
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert "PROTOCOL_VERSION" in (await refused(here, context)).upper()


@both_loops
async def test_a_client_that_speaks_only_http2_is_told_so_in_http1() -> None:
    """OpenSSL lets a handshake without a common ALPN through; the first bytes decide."""
    async with site() as here:
        context = client(the_zone().user())
        context.set_alpn_protocols(["h2"])
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
        answer = await here.get(context, preface)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 505 "))
        assert b'"kind":"Status"' in answer
        assert not here.upstream.connections


@both_loops
async def test_strangers_in_the_handshake_are_limited_and_told() -> None:
    async with site() as here:
        here.face._gate.max_half_open = 1
        quiet, writer = await asyncio.open_connection(LOOPBACK, here.pair.entry_port)
        await until(lambda: here.face._gate.half_open == 1)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await here.get(client(the_zone().user()))
        writer.transport.abort()
        await until(lambda: here.face._gate.half_open == 0)
        assert b"tower:admin" in await here.get(client(the_zone().user()))
        assert quiet.at_eof() or not writer.transport.get_extra_info("x")


@both_loops
async def test_a_head_that_is_longer_than_a_streams_window_arrives() -> None:
    longest = MAX_HEAD_BYTES - len(GET) - len(b"X: \r\n")
    async with site() as here:
        for length in (INITIAL_WINDOW_BYTES, INITIAL_WINDOW_BYTES * 3 // 2, longest):
            request = GET[:-2] + b"X: " + b"x" * length + b"\r\n\r\n"
            heard = await here.get(client(the_zone().user()), request)
            assert heard.startswith(b"HTTP/1.1 200 ") and b"x" * length in heard
        too_long = GET[:-2] + b"X: " + b"x" * 2 * MAX_HEAD_BYTES
        heard = await here.get(client(the_zone().user()), too_long)
        assert heard.startswith(b"HTTP/1.1 431 ")


@both_loops
async def test_closing_the_face_ends_connections_with_the_reason() -> None:
    async with site() as here:
        reader, writer = await asyncio.open_connection(
            LOOPBACK,
            here.pair.entry_port,
            ssl=client(the_zone().user()),
            server_hostname=NAME,
        )
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        (stream,) = here.pair.entry_streams
        ends: list[StreamReset | None] = []
        handler = stream.handler
        assert handler is not None
        heard = handler.stream_closed

        class Told:
            def __getattr__(self, name: str) -> object:
                return getattr(handler, name)

            def stream_closed(self, error: StreamReset | None) -> None:
                ends.append(error)
                heard(error)

        stream.handler = Told()  # type: ignore[assignment]
        here.face.close("the agent stops")
        await until(lambda: ends)
        assert ends[0] is not None and ends[0].reason == "the agent stops"
        writer.transport.abort()
