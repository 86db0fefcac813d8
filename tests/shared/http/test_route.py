"""Through an HTTP proxy to the apiserver, on both loops: plain, and with TLS inside of TLS.

The straight way is in test_upstream.py.

Covered: logins, large answers in both directions of pausing, proxies that refuse, talk nonsense,
are not there, or show a certificate that nobody trusts; nothing is left open.
"""

import asyncio
import dataclasses
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared.http.apiserver import ApiServer, Credential
from shared.http.client import request_json
from shared.http.status import Refusal
from shared.http.upstream import UpstreamPool
from shared.outbound import Proxy
from tests.fakes.host_side import open_sockets, until
from tests.fakes.http_proxy import HttpProxy, http_proxy
from tests.fakes.upstream import (
    HOST_NAME,
    RawConnection,
    RawUpstream,
    Script,
    loopback_tls,
)

SERVER_TLS, CLIENT_TLS = loopback_tls()
LOGIN = "me:pa:ss"


async def version(connection: RawConnection) -> None:
    while True:
        head = await connection.read_head()
        assert head.startswith(b"GET /version ")
        await connection.respond(b'{"gitVersion": "v1"}')


@dataclasses.dataclass
class Way:
    pool: UpstreamPool
    proxy: HttpProxy


@asynccontextmanager
async def way(
    *,
    proxy_tls: bool = False,
    upstream_tls: bool = True,
    script: Script = version,
    trusted: ssl.SSLContext = CLIENT_TLS,
    login: str | None = LOGIN,
    **of_proxy: int,
) -> AsyncIterator[Way]:
    before = open_sockets()
    loop = asyncio.get_running_loop()
    tls = SERVER_TLS if upstream_tls else None
    async with (
        RawUpstream(script, tls=tls) as upstream,
        http_proxy(
            login=LOGIN, tls=SERVER_TLS if proxy_tls else None, **of_proxy
        ) as proxy,
    ):
        user, _, password = (login or "").partition(":")
        apiserver = ApiServer(
            host="127.0.0.1",
            port=upstream.port,
            tls=CLIENT_TLS if upstream_tls else None,
            server_hostname=HOST_NAME if upstream_tls else None,
            credential=Credential(monotonic=loop.time),
            proxy=Proxy(
                host="127.0.0.1",
                port=proxy.port,
                user=user or None,
                password=password or None,
                is_tls=proxy_tls,
            ),
            proxy_tls=trusted if proxy_tls else None,
        )
        pool = UpstreamPool(apiserver, loop=loop, connect_timeout_seconds=2)
        try:
            yield Way(pool, proxy)
        finally:
            await pool.close()
    await until(lambda: open_sockets() <= before)


@pytest.mark.parametrize("proxy_tls", [False, True])
@pytest.mark.parametrize("upstream_tls", [False, True])
async def test_requests_reach_the_apiserver(
    proxy_tls: bool, upstream_tls: bool
) -> None:
    async with way(proxy_tls=proxy_tls, upstream_tls=upstream_tls) as here:
        for _ in range(3):
            answer = await request_json(here.pool, "GET", "/version")
            assert answer == (200, {"gitVersion": "v1"})
        # One connection, kept warm.
        assert here.proxy.connected_to == [str(here.pool.apiserver)]


@pytest.mark.parametrize("proxy_tls", [False, True])
async def test_a_large_answer_arrives_whole(proxy_tls: bool) -> None:
    text = random.Random(1).randbytes(1024 * 1024).hex()

    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.respond(b'{"text": "%b"}' % text.encode())

    async with way(proxy_tls=proxy_tls, script=script) as here:
        assert (await request_json(here.pool, "GET", "/"))[1] == {"text": text}


@pytest.mark.parametrize("proxy_tls", [False, True])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"login": None}, r"the proxy 127.0.0.1:\d+ refuses to connect there \(407\)"),
        ({"refuse_with": 403}, r"refuses to connect there \(403\)"),
        ({"refuse_with": 99}, "refuses to connect there"),
    ],
)
async def test_a_proxy_that_refuses_is_named(
    proxy_tls: bool, how: dict[str, int], words: str
) -> None:
    async with way(proxy_tls=proxy_tls, **how) as here:
        with pytest.raises(Refusal, match=words) as caught:
            await request_json(here.pool, "GET", "/version")
        assert caught.value.code == 502
        assert "pa:ss" not in str(caught.value)


async def test_the_certificate_of_a_proxy_is_checked() -> None:
    strict = ssl.create_default_context()
    async with way(proxy_tls=True, trusted=strict) as here:
        with pytest.raises(Refusal, match="its certificate is not trusted"):
            await request_json(here.pool, "GET", "/version")
        assert not here.proxy.connected_to


@pytest.mark.parametrize("proxy_tls", [False, True])
async def test_what_is_no_proxy_is_said(proxy_tls: bool) -> None:
    async def nonsense(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(b"SSH-2.0\r\n\r\n")
        await connection.read_to_end()

    async with (
        RawUpstream(nonsense, tls=SERVER_TLS if proxy_tls else None) as fake,
        way(proxy_tls=proxy_tls) as here,
    ):
        proxy = here.pool.apiserver.proxy
        assert proxy is not None
        other = dataclasses.replace(proxy, port=fake.port)
        here.pool.renew(dataclasses.replace(here.pool.apiserver, proxy=other))
        with pytest.raises(Refusal, match="answer to connect is not http"):
            await request_json(here.pool, "GET", "/version")


async def test_a_proxy_that_hangs_up_is_said() -> None:
    async def hang_up(connection: RawConnection) -> None:
        await connection.read_head()

    async with (
        RawUpstream(hang_up, tls=SERVER_TLS) as fake,
        way(proxy_tls=True) as here,
    ):
        proxy = here.pool.apiserver.proxy
        assert proxy is not None
        other = dataclasses.replace(proxy, port=fake.port)
        here.pool.renew(dataclasses.replace(here.pool.apiserver, proxy=other))
        with pytest.raises(Refusal, match="cannot reach the apiserver"):
            await request_json(here.pool, "GET", "/version")
