"""The gateway from a caller's socket to an apiserver's, through real TLS and a real tunnel.

Covered: what arrives there, keep-alive over clusters and routes, KubeSphere's forms, bodies
in both directions, streamed answers, upgrades, refusals in order, who is let in.
"""

import asyncio
from datetime import timedelta

import pytest

from certs.chains import pem
from certs.keys import certificate_request, new_key, private_pem
from certs.names import parse_cluster_name
from tests.fakes.gateway import GatewayBench, anyone
from tests.fakes.host_side import until
from tests.fakes.tunnel_pair import both_loops
from tests.fakes.upstream import RawConnection
from tower_server.gateway.callers import GatewayCaller

ADMIN = [
    "Impersonate-User: tower:admin",
    "Impersonate-Group: tower:cluster-admins",
    "Authorization: Bearer agents-own",
]


@both_loops
async def test_a_request_arrives_as_the_callers() -> None:
    async with GatewayBench() as bench:
        await bench.connect()
        client = await bench.client()
        answer = await client.get(
            "/clusters/alpha/api/v1/x%2Fy?a=b%20c", "Accept: text/plain", "X-A: b"
        )
        first, *fields = answer.body.decode().strip().split("\r\n")
        assert first == "GET /api/v1/x%2Fy?a=b%20c HTTP/1.1"
        assert fields[1:] == ["Accept: text/plain", "X-A: b", *ADMIN]
        assert not answer.closes


@both_loops
async def test_one_connection_leads_to_every_cluster_and_route() -> None:
    async with GatewayBench() as bench:
        sites = {name: await bench.connect(name) for name in ("alpha", "beta")}
        client = await bench.client()
        for name in ("alpha", "beta", "alpha", "alpha", "beta"):
            answer = await client.get(f"/clusters/{name}/{name}")
            assert answer.body.startswith(f"GET /{name} ".encode())
        for name, site in sites.items():
            assert site.received.count(f"GET /{name} ".encode()) > 1
            assert site.received.count(b"GET ") == site.received.count(
                f"GET /{name} ".encode()
            )
        # The last on this connection, and answered by who it is for.
        answer = await client.get("/healthz")
        assert (answer.code, answer.body, answer.closes) == (200, b"ok\n", True)


@pytest.mark.parametrize(
    ("path", "arrives"),
    [
        ("/clusters/alpha", "/"),
        ("/clusters/alpha?x=y", "/?x=y"),
        ("/clusters/alpha/kapis/x", "/kapis/x"),
        ("/api/clusters/alpha/v1/pods?x=/y", "/api/v1/pods?x=/y"),
        ("/api/clusters/alpha", "/api"),
        ("/apis/clusters/alpha/apps/v1", "/apis/apps/v1"),
        ("/kapis/clusters/alpha/a.b/v1/%2F", "/kapis/a.b/v1/%2F"),
    ],
)
async def test_older_forms_mean_the_same(path: str, arrives: str) -> None:
    async with GatewayBench() as bench:
        await bench.connect()
        answer = await (await bench.client()).get(path)
        assert answer.body.startswith(f"GET {arrives} HTTP/1.1".encode())


@both_loops
async def test_large_bodies_pass_both_ways() -> None:
    sent = bytes(range(256)) * 16384  # 4 MiB

    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        body = await connection.read_exactly(len(sent))
        await connection.respond(body)

    async with GatewayBench() as bench:
        await bench.connect(script=script)
        client = await bench.client()
        head = (
            b"POST /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
        )
        client.send(head % len(sent) + sent)
        assert (await client.answer()).body == sent


@both_loops
async def test_an_answer_comes_as_it_is_made() -> None:
    go_on = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await connection.send(b"5\r\nfirst\r\n")
        await go_on.wait()
        await connection.send(b"4\r\nlast\r\n0\r\n\r\n")

    async with GatewayBench() as bench:
        await bench.connect(script=script)
        client = await bench.client()
        client.send(b"GET /clusters/alpha/watch HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.reader.readuntil(b"first\r\n")
        go_on.set()
        assert await client.reader.readuntil(b"0\r\n\r\n") == b"4\r\nlast\r\n0\r\n\r\n"


@both_loops
async def test_who_leaves_in_the_middle_of_an_answer_ends_it_at_the_apiserver() -> None:
    left = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await connection.read()
        left.set()

    async with GatewayBench() as bench:
        await bench.connect(script=script)
        client = await bench.client()
        client.send(b"GET /clusters/alpha/watch HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        client.close()
        async with asyncio.timeout(5):
            await left.wait()


@pytest.mark.parametrize("protocol", ["SPDY/3.1", "websocket"])
async def test_an_upgraded_connection_carries_bytes(protocol: str) -> None:
    async def script(connection: RawConnection) -> None:
        head = await connection.read_head()
        assert b"Upgrade: %b" % protocol.encode() in head
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: %b\r\n\r\nhello" % protocol.encode()
        )
        while data := await connection.read():
            await connection.send(data.upper())

    async with GatewayBench() as bench:
        await bench.connect(script=script)
        client = await bench.client()
        client.send(
            b"POST /clusters/alpha/exec HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
            b"Upgrade: %b\r\n\r\n" % protocol.encode()
        )
        assert (await client.answer(has_body=False)).code == 101
        assert await client.reader.readexactly(5) == b"hello"
        for _ in range(3):
            client.send(b"abc" * 1000)
            assert await client.reader.readexactly(3000) == b"ABC" * 1000


# Who is let in


async def test_nobody_is_anonymous_and_nothing_is_told_to_who_is() -> None:
    async with GatewayBench() as bench:
        site = await bench.connect()
        for path in ("/clusters/alpha/api", "/clusters/nowhere/api", "/clusters"):
            client = await bench.client(bench.stranger())
            answer = await client.get(path, "X-Remote-User: tower:admin")
            assert answer.code == 401 and answer.closes
            assert "alpha" not in answer.status["message"]
            assert await client.rest() == b""
        assert not site.received and not site.streams


async def test_a_certificate_of_any_other_role_is_nobody() -> None:
    async with GatewayBench() as bench:
        site = await bench.connect()
        authority = bench.host.authority
        assert site.agent is not None
        agent = site.agent.credentials
        key, now = new_key(), bench.host.gateway.now()
        server = authority.issue_server(key.public_key(), ["x"], now)
        beta = authority.issue_agent(
            certificate_request(key), parse_cluster_name("beta"), now
        )
        for certificate, private in (
            (agent.certificate_pem, agent.key_pem),
            (pem(beta), private_pem(key)),
            (pem(server), private_pem(key)),
        ):
            client = await bench.client(bench.holder(certificate, private))
            answer = await client.get("/clusters/alpha/api")
            assert answer.code == 401 and "user certificate" in answer.status["message"]
        assert not site.received


async def test_a_certificate_is_good_for_its_clusters() -> None:
    async with GatewayBench() as bench:
        await bench.connect("alpha")
        site = await bench.connect("beta")
        client = await bench.client(bench.user(clusters=["alpha"]))
        for name in ("beta", "nowhere"):
            answer = await client.get(f"/clusters/{name}/api")
            assert answer.code == 403 and name in answer.status["message"]
        assert (await client.get("/clusters/alpha/api")).code == 200
        assert not site.received


async def test_a_certificate_that_has_ended_is_good_for_nothing() -> None:
    async with GatewayBench() as bench:
        site = await bench.connect()
        client = await bench.client(bench.user(ttl=timedelta(hours=1)))
        assert (await client.get("/clusters/alpha/first")).code == 200
        later = bench.host.gateway.now() + timedelta(hours=2)
        bench.host.gateway.now = lambda: later
        answer = await client.get("/clusters/alpha/second")
        assert answer.code == 401 and "expired" in answer.status["message"]
        assert b"second" not in site.received


async def test_a_certificate_is_believed_over_tls_1_3_only() -> None:
    import ssl

    async with GatewayBench() as bench:
        await bench.connect()
        context = bench.user()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        answer = await (await bench.client(context)).get("/clusters/alpha/api")
        assert answer.code == 401 and "TLS 1.3" in answer.status["message"]


async def test_the_members_agent_decides_as_whom_it_acts() -> None:
    async with GatewayBench() as bench:
        await bench.connect("alpha")
        await bench.connect("beta", policy=anyone())
        client = await bench.client(bench.user("jane", ["devs"]))
        refused = await client.get("/clusters/alpha/api")
        assert refused.code == 403 and "jane" in refused.status["message"]
        answer = await client.get("/clusters/beta/api")
        assert b"Impersonate-User: jane\r\nImpersonate-Group: devs\r\n" in answer.body


def find(token: bytes) -> GatewayCaller | None:
    known = {b"jane's": "jane", b"joe's": "joe"}
    user = known.get(token)
    return None if user is None else GatewayCaller(user=user, groups=(), clusters=None)


async def test_a_bearer_token_says_who_asks_with_each_request() -> None:
    async with GatewayBench() as bench:
        site = await bench.connect(policy=anyone())
        client = await bench.client(bench.stranger())
        answer = await client.get("/clusters/alpha/x", "Authorization: Bearer jane's")
        assert answer.code == 401 and "no tokens" in answer.status["message"]
        bench.host.gateway.find_by_token = find
        client = await bench.client(bench.stranger())
        for user in ("jane", "joe", "jane"):
            answer = await client.get(
                "/clusters/alpha/x", f"authorization: bearer {user}'s"
            )
            assert f"Impersonate-User: {user}\r\n".encode() in answer.body
        assert b"'s" not in site.received


@pytest.mark.parametrize(
    "fields",
    [
        ["Authorization: Bearer nobody's"],
        ["Authorization: Bearer"],
        ["Authorization: Basic jane's"],
        ["Authorization: jane's"],
        ["Authorization: Bearer jane's", "Authorization: Bearer joe's"],
        ["Authorization: Bearer jane's joe's"],
        ["Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.amFuZSdz"],
    ],
)
async def test_a_token_that_is_nobodys_is_refused(fields: list[str]) -> None:
    async with GatewayBench() as bench:
        site = await bench.connect(policy=anyone())
        bench.host.gateway.find_by_token = find
        client = await bench.client(bench.stranger())
        answer = await client.get("/clusters/alpha/x", *fields)
        assert answer.code == 401 and answer.closes
        assert not site.received


async def test_a_certificate_comes_before_a_token() -> None:
    async with GatewayBench() as bench:
        await bench.connect(policy=anyone())
        bench.host.gateway.find_by_token = find
        client = await bench.client()
        answer = await client.get("/clusters/alpha/x", "Authorization: Bearer joe's")
        assert b"Impersonate-User: tower:admin\r\n" in answer.body


# What goes wrong


async def test_errors_are_statuses_and_say_what_to_do() -> None:
    async with GatewayBench() as bench:
        client = await bench.client()
        unknown = await client.get("/clusters/gamma/api")
        assert unknown.code == 404 and "gamma" in unknown.status["message"]
        assert not unknown.closes
        bench.host.registry.know(parse_cluster_name("gamma"), None)
        never = await client.get("/clusters/gamma/api")
        assert never.code == 503 and "has not come yet" in never.status["message"]
        assert never.field("Retry-After") == "1"
        site = await bench.connect("alpha")
        assert site.agent is not None
        site.agent.tunnel.abort("the test cuts it")
        await until(
            lambda: bench.host.registry.pick(parse_cluster_name("alpha")) is None
        )
        away = await client.get("/clusters/alpha/api")
        assert away.code == 503 and "not connected since" in away.status["message"]
        assert away.status["details"] == {"retryAfterSeconds": 1}


async def test_an_apiserver_that_is_down_is_told_by_the_agent() -> None:
    async with GatewayBench() as bench:
        site = await bench.connect()
        await site.upstream.__aexit__()
        answer = await (await bench.client()).get("/clusters/alpha/api")
        assert answer.code == 502
        assert "the agent cannot reach the apiserver" in answer.status["message"]


async def test_an_agent_that_knows_no_gateway_is_told_to_be_upgraded() -> None:
    from shared.errors import Code

    async with GatewayBench() as bench:
        site = await bench.connect()
        assert site.agent is not None
        site.agent.owner.on_stream = lambda stream: stream.reset(
            Code.REFUSED, "the agent does not know this kind of target; upgrade it"
        )
        answer = await (await bench.client()).get("/clusters/alpha/api")
        assert answer.code == 502 and "upgrade it" in answer.status["message"]


@both_loops
async def test_a_caller_who_does_not_read_stalls_its_own_answer_only() -> None:
    size = 64 * 1024 * 1024

    async def script(connection: RawConnection) -> None:
        while True:
            head = await connection.read_head()
            if b"/large" in head:
                piece = b"x" * 65536
                await connection.send(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
                )
                for _ in range(size // len(piece)):
                    await connection.send(piece)
            else:
                await connection.respond(b"small")

    async with GatewayBench() as bench:
        site = await bench.connect(script=script)
        stalled = await bench.client()
        stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
        stalled.send(b"GET /clusters/alpha/large HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: b"/large" in site.received)
        other = await bench.client()
        for _ in range(20):
            assert (await other.get("/clusters/alpha/x")).body == b"small"
