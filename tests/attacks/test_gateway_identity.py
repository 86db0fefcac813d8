"""Through the gateway nobody runs as anybody else, and nobody's request goes elsewhere.

Each attack is a real request over TLS, through a real tunnel, with an agent that would act
as anybody: only what the server vouches for may arrive, exactly once.
"""

import asyncio
import random
import re
import ssl
from datetime import timedelta

import pytest

from certs.chains import pem
from certs.contexts import inner_client
from certs.keys import new_key, private_pem
from shared.mux.stream import Stream
from shared.tunnel.tls import TlsEnd
from tests.attacks.test_path_tricks import TRICKS
from tests.fakes.gateway import GatewayBench, anyone
from tests.fakes.host_side import until
from tests.fakes.streams import FakeStream
from tower_server.gateway.callers import GatewayCaller

IDENTITY = re.compile(rb"(?i)^(impersonate|x.remote|auth).*$", re.MULTILINE)
CLUSTERS, USERS = ("alpha", "beta"), ("jane", "joe")
OURS = [
    b"Impersonate-User: jane\r",
    b"Impersonate-Group: devs\r",
    b"Authorization: Bearer agents-own\r",
]


def identities(received: bytes) -> list[list[bytes]]:
    """The identity lines of each head that arrived."""
    heads = filter(None, received.split(b"\r\n\r\n"))
    return [
        [m.group() for m in IDENTITY.finditer(head + b"\r")]
        for head in heads
        if b"subjectaccessreviews" not in head
    ]


@pytest.mark.parametrize(
    "field",
    [
        "X-Remote-User: admin",
        "x-remote-user: admin",
        "X-REMOTE-USER: admin",
        "X-Remote-User:admin",
        "X-Remote-User: jane\r\nX-Remote-User: admin",
        "X-Remote-Group: system:masters",
        "X-Remote-Extra-Scopes: all",
        "X-Remote-Uid: 0",
        "X_Remote_User: admin",
        "X-Remote_User: admin",
        "x_remote_group: system:masters",
        "X-Remote-User : admin",
        "X-Remote-User\t: admin",
        " X-Remote-User: admin",
        "A: b\r\n X-Remote-User: admin",
        "A: b\nX-Remote-User: admin",
        "A: b\rX-Remote-User: admin",
        "A: b\x00\r\nX-Remote-User: admin",
        "Connection: X-Remote-User",
        "Connection: X-Remote-User\r\nX-Remote-User: admin",
        "Connection: close, X-Remote-Group, X-Remote-User",
        "Authorization: Bearer stolen",
        "authorization: Basic YTpi",
        "Proxy-Authorization: Basic YTpi",
        "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.c3RvbGVu",
        "Impersonate_User: admin",
        "Impersonate-User: admin\r\nImpersonate-User: admin",
        "Impersonate-User:",
        "Impersonate-Uid: 1\r\nImpersonate-User: admin",
        "Impersonate-Extra-A: b\r\nImpersonate-User: admin",
        "Impersonate-Group: system:masters",
        "Impersonate-User: system:kube-controller-manager",
        "Connection: Impersonate-User\r\nImpersonate-User: admin",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nX-Remote-User: admin",
        "Connection: Upgrade, X-Remote-User\r\nUpgrade: SPDY/3.1\r\nX-Remote-User: admin",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nX-Remote-User: admin",
    ],
)
async def test_no_spelling_of_a_field_makes_somebody_else(field: str) -> None:
    async with GatewayBench() as bench:
        site = await bench.connect(policy=anyone())
        for attempt in range(2):  # the second finds what is known of the first
            client = await bench.client(bench.user("jane", ["devs"]))
            answer = await client.get("/clusters/alpha/api", field)
            assert answer.code in (200, 400, 403), (attempt, answer)
        for lines in identities(site.received):
            assert lines == OURS, site.received


async def test_trailers_carry_no_identity() -> None:
    async with GatewayBench() as bench:
        site = await bench.connect(policy=anyone())
        for name in ("X-Remote-User", "x_remote_user", "Impersonate-User"):
            client = await bench.client(bench.user("jane", ["devs"]))
            client.send(
                b"POST /clusters/alpha/x HTTP/1.1\r\nHost: h\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n%b: admin\r\n\r\n"
                % name.encode()
            )
            await client.rest()
        assert b"admin" not in site.received


@pytest.mark.parametrize("path", TRICKS)
async def test_a_trick_in_the_path_reaches_no_member(path: str) -> None:
    async with GatewayBench() as bench:
        sites = [await bench.connect(name) for name in ("alpha", "beta")]
        client = await bench.client()
        await client.get("/clusters/alpha/warm")
        client = await bench.client(bench.user(clusters=["alpha"]))
        client.send(f"GET {path} HTTP/1.1\r\nHost: beta\r\n\r\n".encode())
        answer = await client.answer()
        assert answer.code in (400, 403, 404), answer
        assert not sites[1].received and sites[0].received.count(b"GET ") == 1


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer_Encoding: chunked",
        b"Content-Length: 4\r\nContent-Length: 0",
        b"Content-Length: +4",
        b"Content-Length: 4, 4",
    ],
)
async def test_what_is_framed_in_two_ways_arrives_in_none(framing: bytes) -> None:
    hidden = b"GET /clusters/alpha/hidden HTTP/1.1\r\nHost: h\r\n\r\n"
    async with GatewayBench() as bench:
        site = await bench.connect()
        client = await bench.client()
        client.send(
            b"POST /clusters/alpha/x HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n0\r\n\r\n%b"
            % (framing, hidden)
        )
        answers = await client.rest()
        assert (
            answers.count(b"HTTP/1.1 ") == 1
            and b"HTTP/1.1 400" in answers
            or (b"HTTP/1.1 501" in answers)
        )
        assert not site.received


def user_of(token: bytes) -> GatewayCaller:
    user = token.decode()
    return GatewayCaller(user=user, groups=(f"{user}-group",), clusters=None)


async def test_ten_thousand_requests_of_one_connection_are_each_their_own() -> None:
    """Two clusters and two users, interleaved at random: no answer is another's."""
    randomness = random.Random(6)
    async with GatewayBench() as bench:
        bench.host.gateway.find_by_token = user_of
        sites = {n: await bench.connect(n, policy=anyone()) for n in ("alpha", "beta")}
        client = await bench.client(bench.stranger())
        for number in range(10_000):
            name, user = randomness.choice(CLUSTERS), randomness.choice(USERS)
            path = f"/{name}/{user}/{number}"
            answer = await client.get(
                f"/clusters/{name}{path}", f"Authorization: Bearer {user}"
            )
            lines = answer.body.split(b"\r\n")
            assert lines[0] == b"GET %b HTTP/1.1" % path.encode()
            assert f"Impersonate-User: {user}".encode() in lines
            assert f"Impersonate-Group: {user}-group".encode() in lines
            assert answer.body.count(b"Impersonate-") == 2
        for name, site in sites.items():
            other = "beta" if name == "alpha" else "alpha"
            assert f"GET /{other}/".encode() not in site.received


# Who else might open a stream to the agent's gateway


async def test_the_agent_serves_nobody_but_a_server() -> None:
    async with GatewayBench() as bench:
        site = await bench.connect(policy=anyone())
        authority, key = bench.host.authority, new_key()
        now = bench.host.gateway.now()
        assert site.agent is not None
        own = site.agent.credentials
        user = authority.issue_user(
            key.public_key(),
            user="admin",
            groups=(),
            clusters=None,
            ttl=timedelta(hours=1),
            now=now,
        )
        for chain, private in (
            (pem(user), private_pem(key)),
            (own.certificate_pem, own.key_pem),
        ):
            failed: list[str] = []
            stream = _open(bench)
            end = TlsEnd(
                inner_client(chain, private, authority.pem),
                server_side=False,
                on_handshake=_speak,
                call_later=asyncio.get_running_loop().call_later,
                on_failed=failed.append,
            )
            stream.handler = end
            end.start(stream)
            await until(lambda s=stream: not s.session.streams)  # type: ignore[misc]
        assert not site.received


async def test_the_server_tells_nobody_but_the_clusters_own_agent_who_asks() -> None:
    """Somebody else's end in the tunnel, with a certificate of our CA but another role."""
    async with GatewayBench() as bench:
        site, other = await bench.connect("alpha"), await bench.connect("beta")
        site.open = other.open  # type: ignore[method-assign]
        assert site.agent is not None
        site.agent.owner.on_stream = other.open
        answer = await (await bench.client()).get("/clusters/alpha/api")
        assert answer.code == 502 and "not its agent" in answer.status["message"]
        assert not other.received


def _open(bench: GatewayBench) -> Stream:
    session = next(iter(bench.host.registry.sessions()))
    return session.connection.session.open_stream("gateway")


def _speak(plain, connection: ssl.SSLObject):  # type: ignore[no-untyped-def]
    plain.write(
        b"GET /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nX-Remote-User: admin\r\n\r\n"
    )
    return FakeStream()
