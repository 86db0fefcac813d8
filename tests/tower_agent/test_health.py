"""The health endpoint over real HTTP."""

import asyncio
import socket

import aiohttp
import pytest

from shared.metrics import Metric, gauge
from shared.settings import HostPort
from tests.fakes.dialling import LOOPBACK
from tower_agent.health import serve_health


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


async def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    url = f"http://{LOOPBACK}:{port}{path}"
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url) as answer,
    ):
        return answer.status, await answer.text()


async def test_ready_means_that_a_tunnel_is_up_and_healthy_that_we_serve() -> None:
    port = free_port()
    reason: str | None = "no tunnel to the server"
    address = HostPort(host=LOOPBACK, port=port)
    async with serve_health(address, lambda: reason, tuple):
        assert await get(port, "/healthz") == (200, "ok\n")
        assert await get(port, "/readyz") == (
            503,
            "not ready: no tunnel to the server\n",
        )
        reason = None
        assert await get(port, "/readyz") == (200, "ok: the tunnel is up\n")
        reason = "draining: the agent stops"
        assert (await get(port, "/readyz", "HEAD"))[0] == 503
        assert (await get(port, "/version"))[0] == 404
        assert (await get(port, "/healthz", "POST"))[0] == 405


async def test_the_numbers_of_the_moment_are_at_metrics() -> None:
    port, ups = free_port(), 0

    def read() -> tuple[Metric, ...]:
        return (gauge("tower_x", "X.", (), [((), ups)]),)

    address = HostPort(host=LOOPBACK, port=port)
    async with serve_health(address, lambda: None, read):
        for ups in (1, 2):
            status, text = await get(port, "/metrics")
            assert status == 200 and f"tower_x {ups}.0\n" in text


async def test_the_port_is_free_again_behind_it_even_with_a_client_that_stays() -> None:
    port = free_port()
    address = HostPort(host=LOOPBACK, port=port)
    reader, writer = None, None
    async with asyncio.timeout(5):
        async with serve_health(address, lambda: None, tuple):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(b"GET /healthz HTTP/1.1\r\n")  # and no more
            await writer.drain()
        async with serve_health(address, lambda: None, tuple):
            assert (await get(port, "/healthz"))[0] == 200
    writer.close()


async def test_an_address_that_is_taken_is_an_error_and_leaves_nothing() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        address = HostPort(host=LOOPBACK, port=taken.getsockname()[1])
        with pytest.raises(OSError):
            async with serve_health(address, lambda: None, tuple):
                raise AssertionError("it serves on a port that is taken")
