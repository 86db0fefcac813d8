"""The bounds of a request; joins over it are in test_enrol.py and test_wrong_joins.py.

Covered: size, redirects, Retry-After, which failures may pass.
"""

import socket
import ssl

import pytest
from aiohttp import web

from certs.contexts import outer_client
from shared.outbound import Proxy
from tests.fakes.join_server import serve_https
from tests.fakes.tls_proxy import StrangeAuthority
from tower_agent.exchange import MAX_ANSWER_BYTES, Answer, Exchange, ExchangeFailed


async def ask(handler: object) -> Answer:
    authority = StrangeAuthority()
    app = web.Application()
    app.router.add_get("/x", handler)  # type: ignore[arg-type]
    async with (
        serve_https(app, authority.server_context("127.0.0.1")) as port,
        Exchange(
            host="127.0.0.1",
            port=port,
            context=outer_client("custom", authority.pem),
            proxy=None,
        ) as exchange,
    ):
        return await exchange.request("GET", "/x")


async def test_an_endless_answer_is_cut_off() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError:
            return response

    assert len((await ask(endless)).body) == MAX_ANSWER_BYTES


async def test_a_redirect_is_not_followed() -> None:
    async def elsewhere(_request: web.Request) -> web.Response:
        return web.Response(
            status=307, headers={"Location": "https://elsewhere.invalid/"}
        )

    assert (await ask(elsewhere)).status == 307


@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7), ("999999", 3600), ("soon", 0), ("-1", 0), ("", 0)]
)
def test_retry_after_is_a_bounded_number(text: str, seconds: float) -> None:
    answer = Answer(status=503, headers={"Retry-After": text}, body=b"")
    assert answer.retry_after_seconds == seconds


PROXY = Proxy(host="proxy", port=3128)


@pytest.mark.parametrize(
    ("failed", "permanent"),
    [
        (ExchangeFailed(ConnectionRefusedError(), proxy=None), False),
        (ExchangeFailed(TimeoutError(), proxy=None), False),
        (ExchangeFailed(socket.gaierror(socket.EAI_AGAIN, "later"), proxy=None), False),
        (
            ExchangeFailed(socket.gaierror(socket.EAI_NONAME, "unknown"), proxy=None),
            True,
        ),
        (ExchangeFailed(ssl.SSLError("bad"), proxy=None), True),
        (ExchangeFailed(OSError(), proxy=PROXY, proxy_status=407), True),
        (ExchangeFailed(OSError(), proxy=PROXY, proxy_status=503), False),
    ],
)
def test_which_failures_may_pass_by_themselves(
    failed: ExchangeFailed, permanent: bool
) -> None:
    assert failed.permanent is permanent
