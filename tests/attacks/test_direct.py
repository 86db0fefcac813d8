"""The attacks on the request path, against the server's own end of a direct connection.

Over real sockets: a client's TLS through the front door to the end in the server's process, and from
there to a member that shows what it got. What is refused by the same code for an agent is refused here:
identity in every spelling, certificates of other roles and clusters, requests within requests, paths of
other clusters. And nobody but the front door's callers gets to that end: its certificate opens no tunnel.
"""

import asyncio
import re
import ssl

import pytest

from certs.contexts import sealed_client
from tests.certs.zone import ALPHA, BETA, ZONE, Holder
from tests.fakes.dialling import LOOPBACK, the_zone
from tests.fakes.tunnel_pair import both_loops
from tests.fakes.upstream import RawConnection, RawUpstream
from tests.tower_server.test_direct import SERVER_TLS, Site, kubeconfig, site

LINE = b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n"

# Each is sent on a connection of its own; the next request on it would be what was smuggled.
ATTACKS = [
    *(
        LINE + name + b": stolen\r\n\r\n"
        for name in (
            b"Authorization",
            b"AUTHORIZATION",
            b"X-Remote-User",
            b"X-Remote-Group",
            b"Impersonate-User",
            b"impersonate-group",
            b"Impersonate_User",
            b"Impersonate-Uid",
            b"Impersonate-Extra-Scopes",
            b"Connection: Impersonate-User\r\nX-Remote-Uid",
            b"Connection: Authorization\r\nAuthorization",
        )
    ),
    LINE + b"Impersonate-User:\r\n\r\n",
    LINE
    + b"Impersonate-User: tower:admin\r\nImpersonate-Group: system:masters\r\n\r\n",
    LINE + b"X: y\r\n Impersonate-User: stolen\r\n\r\n",
    LINE + b"X: y\nImpersonate-User: stolen\r\n\r\n",
    LINE
    + b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.stolen\r\n\r\n",
    LINE
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /stolen HTTP/1.1\r\n\r\n",
    LINE
    + b"Content-Length: 4\r\nContent-Length: 0\r\n\r\nGET /stolen HTTP/1.1\r\n\r\n",
    LINE + b"Transfer-Encoding: chunked\r\n\r\n0\r\nImpersonate-User: stolen\r\n\r\n",
    LINE + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
    LINE
    + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\nGET /stolen HTTP/1.1\r\n\r\n",
    *(
        b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path
        for path in (
            b"/clusters/beta/stolen",
            b"/clusters/alpha/../beta/stolen",
            b"/clusters/alpha%2f..%2fbeta/stolen",
            b"/clusters//beta/stolen",
            b"/clusters/alpha;x/stolen",
            b"http://127.0.0.1/stolen",
        )
    ),
    b"CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
    b"\x16\x03\x01 no HTTP at all\r\n\r\n",
]


async def echo(connection: RawConnection) -> None:
    """Answers everything, also what should never have come."""
    while True:
        await connection.read_head()
        await connection.respond(b'{"metadata": {}}')


def assert_harmless(received: bytes) -> None:
    """Our own questions apart, each request has exactly the caller's identity."""
    heads = [head for head in received.split(b"\r\n\r\n") if b" HTTP/1." in head]
    for head in heads:
        fields = [line.lower() for line in head.split(b"\r\n")[1:]]
        identity = [
            line for line in fields if re.match(rb"impersonate|x.remote|auth", line)
        ]
        if head.startswith((b"GET /version ", b"GET /api/v1/n", b"POST /apis/auth")):
            assert identity == [b"authorization: bearer one"], head
            continue
        assert identity == [
            b"impersonate-user: tower:admin",
            b"impersonate-group: tower:cluster-admins",
            b"authorization: bearer one",
        ], head
        assert b"stolen" not in head, head


async def attack(here: Site, request: bytes) -> None:
    user = the_zone().user()
    context = sealed_client(user.chain_pem, user.key_pem, the_zone().ca_pem)
    reader, writer = await asyncio.open_connection(
        LOOPBACK, here.door_port, ssl=context, server_hostname=f"alpha.{ZONE}"
    )
    try:
        writer.write(request + LINE + b"\r\n")
        async with asyncio.timeout(5):
            await reader.read(65536)
    except (ConnectionError, ssl.SSLError):
        pass  # hung up on
    finally:
        writer.transport.abort()


@both_loops
async def test_nothing_that_a_caller_says_changes_who_he_is_there() -> None:
    async with RawUpstream(echo, tls=SERVER_TLS) as member, site() as here:
        here.direct.apply(here.record(kubeconfig=kubeconfig(member.port)))
        for request in ATTACKS:
            await attack(here, request)
        received = b"".join(bytes(link.received) for link in member.connections)
        assert b"Impersonate-User: tower:admin\r\n" in received  # some got through
        assert_harmless(received)


async def handshake(here: Site, holder: Holder | None, name: str) -> bytes:
    """What the first request is answered with, or nothing if there is none."""
    if holder is None:
        context = ssl.create_default_context(cadata=the_zone().ca_pem.decode())
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    else:
        context = sealed_client(holder.chain_pem, holder.key_pem, the_zone().ca_pem)
    try:
        reader, writer = await asyncio.open_connection(
            LOOPBACK, here.door_port, ssl=context, server_hostname=name
        )
    except (ConnectionError, ssl.SSLError):
        return b""
    try:
        writer.write(LINE + b"\r\n")
        async with asyncio.timeout(5):
            return await reader.read(65536)
    except (ConnectionError, ssl.SSLError):
        return b""
    finally:
        writer.transport.abort()


@both_loops
async def test_only_a_user_of_this_cluster_gets_an_answer_of_the_member() -> None:
    async with site() as here:
        here.direct.apply(here.record())
        alpha = f"alpha.{ZONE}"
        zone = the_zone()
        assert (await handshake(here, zone.user(), alpha)).startswith(b"HTTP/1.1 404")
        for holder in (
            None,
            zone.agent(ALPHA),
            zone.server(),
            zone.user(clusters=(BETA,)),
            zone.user("stranger", ()),
        ):
            answer = await handshake(here, holder, alpha)
            assert answer == b"" or re.match(rb"HTTP/1.1 40[13] ", answer), answer
        # Another name leads nowhere, with the best of certificates.
        assert await handshake(here, zone.user(clusters=None), f"beta.{ZONE}") == b""
        asked = {path for path, _ in here.member.requests}
        assert asked <= {"/version", "/api/v1/nodes", "/api", *KUBE_SYSTEM}


KUBE_SYSTEM = {"/api/v1/namespaces/kube-system"}


@both_loops
async def test_a_kubeconfig_that_others_may_write_cannot_have_our_files() -> None:
    """A Secret that says: send the server's own token to this address."""
    async with site() as here:
        here.direct._directory = None  # as it is where the state lies in Kubernetes
        token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
        thief = here.record(kubeconfig=kubeconfig(here.port, {"tokenFile": token}))
        with pytest.raises(ValueError, match="names a file, which is not allowed"):
            here.direct.apply(thief)
        with pytest.raises(ValueError, match="names a file"):
            await here.direct.check(thief)
        assert not here.member.requests
