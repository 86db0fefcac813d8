"""Each wrong join ends within 10 s, in one sentence that names the cause and the remedy.

Covered, in the order of the way: the join string, DNS, TCP, proxies, what is no Tower, pins, TLS
ended by strangers, clocks, tokens, names and UIDs, the member's apiserver, and what keeps the
tunnel's WebSocket from coming about.
"""

import asyncio
import contextlib
import dataclasses
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web

from certs.joining import JoinSecret, JoinString, new_token
from certs.keys import new_key, private_pem
from shared.member.preflight import MemberFacts, PreflightFailed, check_member
from tests.fakes.http_proxy import http_proxy
from tests.fakes.join_server import JoinServer, join_server, serve_https
from tests.fakes.member_api import client, member_api
from tests.fakes.tls_proxy import StrangeAuthority, tls_terminator
from tower_agent.causes import UpgradeAnswer, explain_dial_failure
from tower_agent.enrol import JoinFailed, JoinSettings, enrol
from tower_server.endpoints import error_response
from tower_server.join import SlowDown

LIMIT_SECONDS = 10.0
MEMBER = MemberFacts(uid="uid-a", apiserver_version="v1.34.1")
SETTINGS = JoinSettings(agent_version="0.1.0")
HOUR = timedelta(hours=1)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[JoinServer]:
    async with join_server(tmp_path / "ca") as running:
        yield running


def assert_one_sentence(text: str, *parts: str) -> None:
    """One line, one full stop at its end, with the cause and the remedy in it."""
    assert "\n" not in text and text.endswith("."), text
    assert not re.search(r"[.!?] [A-Z]", text), f"more than one sentence: {text}"
    for part in parts:
        assert re.search(part, text), f"{part!r} is not in: {text}"


async def failure(
    join: JoinString, settings: JoinSettings = SETTINGS, member: MemberFacts = MEMBER
) -> str:
    """Join, which must fail in time, and return the sentence."""
    started = time.monotonic()
    with pytest.raises(JoinFailed) as caught:
        await enrol(join, member, private_pem(new_key()), settings)
    assert time.monotonic() - started < LIMIT_SECONDS
    assert join.secret.reveal() not in str(caught.value)
    return str(caught.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def settings_with(**environ: str) -> JoinSettings:
    return dataclasses.replace(SETTINGS, environ=environ)


# -- The way to the server -----------------------------------------------------------------


async def test_a_name_that_does_not_resolve(
    server: JoinServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_args: object, **_kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    join = await server.invite(host="tower.invalid")
    assert_one_sentence(
        await failure(join), r"tower\.invalid.* cannot be resolved", "check .*DNS"
    )


async def test_a_closed_port(server: JoinServer) -> None:
    join = await server.invite(port=free_port())
    assert_one_sentence(
        await failure(join), "Nothing listens on", "check that the server runs"
    )


async def test_a_port_that_swallows_everything(server: JoinServer) -> None:
    async with tcp_server(lambda _reader, _writer: asyncio.Event().wait()) as port:
        join = await server.invite(port=port)
        assert_one_sentence(await failure(join), "does not answer in time", "firewall")


async def test_a_proxy_that_demands_a_login(server: JoinServer) -> None:
    async with http_proxy(login="me:password") as proxy:
        join = await server.invite(host="tower.test")
        text = await failure(
            join, settings_with(HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}")
        )
        assert_one_sentence(
            text, rf"127\.0\.0\.1:{proxy.port} demands a login \(407\)", "NO_PROXY"
        )


async def test_a_proxy_with_the_wrong_login_does_not_leak_it(
    server: JoinServer,
) -> None:
    async with http_proxy(login="me:password") as proxy:
        join = await server.invite(host="tower.test")
        url = f"http://me:hunter2@127.0.0.1:{proxy.port}"
        text = await failure(join, settings_with(HTTPS_PROXY=url))
        assert_one_sentence(text, "demands a login", "USER:PASSWORD")
        assert "hunter2" not in text


async def test_a_proxy_that_forbids_the_address(server: JoinServer) -> None:
    async with http_proxy(refuse_with=403) as proxy:
        join = await server.invite(host="tower.test")
        text = await failure(
            join, settings_with(HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}")
        )
        assert_one_sentence(
            text, r"refuses to connect to tower\.test:\d+ \(status 403", "NO_PROXY"
        )


async def test_a_proxy_that_is_not_there(server: JoinServer) -> None:
    join = await server.invite(host="tower.test")
    text = await failure(
        join, settings_with(HTTPS_PROXY=f"http://127.0.0.1:{free_port()}")
    )
    assert_one_sentence(
        text, "proxy 127.0.0.1:.* cannot be reached", "check HTTPS_PROXY"
    )


async def test_a_proxy_setting_that_is_none(server: JoinServer) -> None:
    join = await server.invite(host="tower.test")
    text = await failure(
        join, settings_with(HTTPS_PROXY="socks5://me:hunter2@proxy:1080")
    )
    assert_one_sentence(
        text, "HTTPS_PROXY is not the URL of an HTTP proxy", "set it to"
    )
    assert "hunter2" not in text


# -- Not a Tower ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tcp_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]],
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[object]] = set()

    async def connected(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening.wait_closed()


async def plain_http(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await reader.read(1024)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


async def ssh(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
    await asyncio.sleep(0)


async def hang_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    return


@pytest.mark.parametrize("kind", [plain_http, ssh])
async def test_a_port_without_tls(
    server: JoinServer,
    kind: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    async with tcp_server(kind) as port:
        join = await server.invite(port=port)
        assert_one_sentence(
            await failure(join),
            r"not speak TLS as a Tower .*\(wrong version number\)",
            "check host and",
        )


async def test_a_port_that_speaks_something_else_inside_tls(server: JoinServer) -> None:
    async with tcp_server(ssh, StrangeAuthority().server_context("127.0.0.1")) as port:
        join = await server.invite(port=port)
        assert_one_sentence(
            await failure(join), r"not a Tower server \(.*not HTTP", "check host"
        )


async def test_a_port_that_hangs_up(server: JoinServer) -> None:
    async with tcp_server(hang_up) as port:
        join = await server.invite(port=port)
        assert_one_sentence(
            await failure(join), "closed the connection", "not a Tower|firewall"
        )


async def page(_request: web.Request) -> web.Response:
    return web.Response(text="<html>welcome</html>", content_type="text/html")


async def elsewhere(_request: web.Request) -> web.Response:
    raise web.HTTPFound("https://login.example.com/")


@pytest.mark.parametrize(
    ("handler", "status"), [(page, 200), (elsewhere, 302), (None, 404)]
)
async def test_another_web_server(
    server: JoinServer,
    handler: Callable[[web.Request], Awaitable[web.Response]] | None,
    status: int,
) -> None:
    app = web.Application()
    if handler is not None:
        app.router.add_get("/{path:.*}", handler)
    async with serve_https(app, StrangeAuthority().server_context("127.0.0.1")) as port:
        join = await server.invite(port=port)
        text = await failure(join)
        assert_one_sentence(
            text, f"is not a Tower server .* {status}", "check host and port"
        )


async def test_a_gateway_without_its_server(server: JoinServer) -> None:
    async def away(_request: web.Request) -> web.Response:
        return web.Response(status=503, text="no backend")

    server.intercept = away
    assert_one_sentence(
        await failure(await server.invite()), "answered 503", "try again when"
    )


# -- Trust ---------------------------------------------------------------------------------


async def test_a_wrong_pin(server: JoinServer) -> None:
    join = dataclasses.replace(await server.invite(), pin="sha256:" + "0" * 64)
    text = await failure(join)
    assert_one_sentence(
        text, "not the one that the join string pins", "make a new join string"
    )
    assert server.requests == ["GET /join/ca"], "the token was not touched"


async def test_a_stranger_that_ends_tls(server: JoinServer) -> None:
    async with tls_terminator(
        StrangeAuthority().server_context("127.0.0.1"), server.port
    ) as port:
        text = await failure(await server.invite(port=port))
        assert_one_sentence(text, "no authority that the agent trusts", "--ca-file")


async def test_a_stranger_that_ends_tls_beyond_a_proxy(server: JoinServer) -> None:
    context = StrangeAuthority().server_context("tower.test")
    async with tls_terminator(context, server.port) as port, http_proxy() as proxy:
        join = await server.invite(host="tower.test", port=port)
        text = await failure(
            join, settings_with(HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}")
        )
        assert_one_sentence(
            text, "proxy .* no authority that the agent trusts", "--ca-file"
        )


async def test_a_stranger_that_ends_tls_and_another_ca_file(server: JoinServer) -> None:
    async with tls_terminator(
        StrangeAuthority().server_context("127.0.0.1"), server.port
    ) as port:
        settings = dataclasses.replace(SETTINGS, outer_ca_pem=StrangeAuthority().pem)
        text = await failure(await server.invite(port=port), settings)
        assert_one_sentence(text, "no authority that the agent trusts", "--ca-file")


async def test_a_damaged_ca_file(server: JoinServer) -> None:
    async with tls_terminator(
        StrangeAuthority().server_context("127.0.0.1"), server.port
    ) as port:
        settings = dataclasses.replace(SETTINGS, outer_ca_pem=b"no certificate")
        text = await failure(await server.invite(port=port), settings)
        assert_one_sentence(text, "--ca-file cannot be used")


async def test_a_stranger_that_ends_tls_and_alters_the_answer(
    server: JoinServer,
) -> None:
    def alter(data: bytes) -> bytes:
        # One character of the signed payload: the length stays, JSON stays valid.
        return re.sub(rb'("answer": "[\w-]+\.[\w-]{50})(.)', _swap, data)

    def _swap(match: re.Match[bytes]) -> bytes:
        return match[1] + (b"A" if match[2] != b"A" else b"B")

    company = StrangeAuthority()
    context = company.server_context("127.0.0.1")
    async with tls_terminator(context, server.port, transform=alter) as port:
        settings = dataclasses.replace(SETTINGS, outer_ca_pem=company.pem)
        text = await failure(await server.invite(port=port), settings)
        assert_one_sentence(text, "not to be trusted .*signature", "altered it")


async def test_a_name_that_the_certificate_lacks(tmp_path: Path) -> None:
    async with join_server(tmp_path / "ca", hosts=("tower.example.com",)) as server:
        text = await failure(await server.invite(host="127.0.0.1"))
        assert_one_sentence(
            text, "certificate .* is for another name", "--public-address"
        )


@pytest.mark.parametrize(
    ("off", "side"),
    [(timedelta(days=1), "ahead of"), (timedelta(days=-1, minutes=-5), "behind")],
)
async def test_a_clock_that_is_off_by_a_day(
    server: JoinServer, off: timedelta, side: str
) -> None:
    settings = dataclasses.replace(SETTINGS, now=lambda: datetime.now(UTC) + off)
    text = await failure(await server.invite(), settings)
    assert_one_sentence(text, rf"clock is 1 d\b.* {side} the server's", "NTP")
    assert "POST /join" not in server.requests, "the token was not spent"


async def test_a_clock_that_is_off_where_no_date_tells(tmp_path: Path) -> None:
    # A proxy that replaces the Date header: the nonce carries the server's time, too.
    async with join_server(
        tmp_path / "ca", clock=lambda: datetime.now(UTC) - timedelta(days=1)
    ) as server:
        text = await failure(await server.invite())
        assert_one_sentence(text, r"clock of the server is 1 d\b.* behind", "NTP")
        assert "POST /join" not in server.requests


# -- Tokens --------------------------------------------------------------------------------


def other_secret() -> JoinSecret:
    return new_token()[1]


async def test_a_wrong_token(server: JoinServer) -> None:
    join = dataclasses.replace(await server.invite(), secret=other_secret())
    text = await failure(join)
    assert_one_sentence(
        text, "token is not one of this server's, or its secret", "create a new"
    )
    unknown = dataclasses.replace(join, token_id=new_token()[0])
    assert await failure(unknown) == text, "a guesser learns no difference"


async def test_an_expired_token(server: JoinServer) -> None:
    join = await server.invite(ttl=-HOUR)
    text = await failure(join)
    assert_one_sentence(
        text, f"{join.token_id} expired at 20", "`tower token create alpha`"
    )


async def test_a_used_token(server: JoinServer) -> None:
    join = await server.invite()
    await enrol(join, MEMBER, private_pem(new_key()), SETTINGS)
    text = await failure(join)
    assert_one_sentence(
        text, f"{join.token_id} was already used at 20", "`tower token create"
    )


async def test_a_revoked_token(server: JoinServer) -> None:
    join = await server.invite()
    await server.store.revoke_token(join.token_id, datetime.now(UTC))
    text = await failure(join)
    assert_one_sentence(
        text, f"{join.token_id} was revoked at 20", "`tower token create alpha`"
    )


async def test_a_token_of_another_cluster(server: JoinServer) -> None:
    other = await server.invite("beta")
    join = dataclasses.replace(await server.invite("alpha"), cluster=other.cluster)
    text = await failure(join)
    assert_one_sentence(
        text, "for another cluster than 'beta'", "`tower token create beta`"
    )


async def test_too_many_wrong_tokens(server: JoinServer) -> None:
    async def slow_down(_request: web.Request) -> web.Response:
        return error_response(
            429, "slow_down", str(SlowDown(60)), retry_after_seconds=60
        )

    server.intercept = slow_down
    text = await failure(await server.invite())
    assert_one_sentence(text, "Too many joins with a wrong token", "try again in 60 s")


# -- Names and members ---------------------------------------------------------------------


async def test_a_name_that_is_taken(server: JoinServer) -> None:
    await enrol(await server.invite(), MEMBER, private_pem(new_key()), SETTINGS)
    other = dataclasses.replace(MEMBER, uid="uid-b")
    text = await failure(await server.invite(), member=other)
    assert_one_sentence(
        text, "'alpha' is taken by another member", "`tower cluster remove alpha`"
    )


async def test_a_member_that_has_another_name(server: JoinServer) -> None:
    await enrol(await server.invite(), MEMBER, private_pem(new_key()), SETTINGS)
    text = await failure(await server.invite("beta"))
    assert_one_sentence(
        text, "already joined as 'alpha'", "`tower cluster remove alpha`"
    )


# -- The member's apiserver ----------------------------------------------------------------


async def preflight_failure(
    request_address: str | None = None, **member: object
) -> str:
    started = time.monotonic()
    async with member_api() as (api, request):
        for name, value in member.items():
            setattr(api, name, value)
        with pytest.raises(PreflightFailed) as caught:
            await check_member(
                client(request_address) if request_address else request,
                apiserver=request_address or api.address,
                allow_users=["tower:admin"],
                allow_groups=["tower:cluster-admins"],
            )
    assert time.monotonic() - started < LIMIT_SECONDS
    return str(caught.value)


async def test_an_apiserver_that_is_unreachable() -> None:
    text = await preflight_failure(f"127.0.0.1:{free_port()}")
    assert_one_sentence(
        text, r"apiserver at 127\.0\.0\.1:\d+ does not answer", "--kubeconfig"
    )


@pytest.mark.parametrize(
    ("denied", "named"),
    [
        ({"impersonate users"}, "impersonate users 'tower:admin'"),
        (
            {"impersonate groups/tower:cluster-admins"},
            "impersonate groups 'tower:cluster-admins'",
        ),
        ({"create subjectaccessreviews"}, "create subjectaccessreviews"),
        ({"get namespaces"}, "get namespaces 'kube-system'"),
    ],
)
async def test_missing_rights(denied: set[str], named: str) -> None:
    text = await preflight_failure(denied=denied)
    assert_one_sentence(
        text, re.escape(f"lacks rights in the member ({named})"), "manifest"
    )


async def test_a_credential_that_the_apiserver_refuses() -> None:
    text = await preflight_failure(answer_with=401)
    assert_one_sentence(
        text, "refuses the agent's own credential", "check the ServiceAccount"
    )


# -- The tunnel's WebSocket ----------------------------------------------------------------

BLOCKED = (
    "WebSocket to tower.test:8443 is blocked",
    "let the proxy, load balancer or firewall",
)


@pytest.mark.parametrize(
    "observed",
    [
        UpgradeAnswer(status=200, body=b"<html>"),
        UpgradeAnswer(status=400, body=b"Bad Request"),
        UpgradeAnswer(status=404, body=b"not found"),
        UpgradeAnswer(status=405),
        UpgradeAnswer(status=403, body=b"<html>policy</html>"),
        UpgradeAnswer(status=101),
        # The server's own words when the Upgrade header did not arrive.
        UpgradeAnswer(
            status=426, body=b'{"error": "upgrade_required", "message": "WebSocket."}'
        ),
        ConnectionResetError(),
        asyncio.IncompleteReadError(b"", None),
    ],
)
def test_a_websocket_that_is_blocked(observed: BaseException | UpgradeAnswer) -> None:
    assert_one_sentence(
        explain_dial_failure(observed, address="tower.test:8443"), *BLOCKED
    )


NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("observed", "parts"),
    [
        (UpgradeAnswer(status=407), ("proxy.example:3128 demands a login", "NO_PROXY")),
        (
            UpgradeAnswer(status=503),
            ("answered 503: the server is away", "goes on trying"),
        ),
        (
            UpgradeAnswer(
                status=401, headers={"date": format_datetime(NOW - timedelta(days=1))}
            ),
            ("clock is 1 d ahead of the server's", "NTP"),
        ),
        (
            UpgradeAnswer(
                status=403,
                headers={"Date": format_datetime(NOW)},
                body=b'{"error": "removed", "message": "The cluster was removed: join again."}',
            ),
            ("The cluster was removed: join again",),
        ),
        (
            ConnectionRefusedError(111, "refused"),
            ("Through the HTTP|proxy", "check HTTPS_PROXY"),
        ),
        (TimeoutError(), ("does not answer in time through", "NO_PROXY")),
        (
            ssl.SSLCertVerificationError(1, "unknown issuer"),
            ("no authority", "--ca-file"),
        ),
    ],
)
def test_a_tunnel_that_fails_for_other_reasons(
    observed: BaseException | UpgradeAnswer, parts: tuple[str, ...]
) -> None:
    text = explain_dial_failure(
        observed, address="tower.test:8443", proxy="proxy.example:3128", now=NOW
    )
    assert_one_sentence(text, *parts)
