"""The plain port over real HTTP, and what strangers cannot do with it. Both event loops.

Covered: pages, one request a connection, so many connections, so much time, an address that is
taken, a port shared with a successor, the end while somebody asks.
"""

import asyncio
from contextlib import suppress

import pytest

from shared import probe_port
from shared.probe_port import Page, serve_pages
from shared.settings import HostPort
from tests.fakes.host_side import open_sockets, until
from tests.fakes.tunnel_pair import LOOPBACK, both_loops

ANY = HostPort(host=LOOPBACK, port=0)


async def hello() -> Page:
    return Page(text="hello\n")


async def asked(at: HostPort, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(request)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


@both_loops
async def test_a_page_is_answered_and_its_connection_ends() -> None:
    async def broken() -> Page:
        return Page(text=b"no\n", status=503, content_type="text/x")

    before = open_sockets()
    async with serve_pages(ANY, {"/": hello, "/broken": broken}) as at:
        answer = await asked(at, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.count(b"hello\n") == 1
        answer = await asked(at, b"HEAD /broken HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ") and b"text/x" in answer
        assert answer.endswith(b"\r\n\r\n")
        for head, status in ((b"GET /x", b"404"), (b"POST /", b"405")):
            answer = await asked(at, head + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 " + status)
    await until(lambda: open_sockets() <= before)


@both_loops
async def test_strangers_hold_only_so_many_connections_for_so_long() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_port, "MAX_CONNECTIONS", 3)
        patch.setattr(probe_port, "CONNECTION_SECONDS", 0.5)
        async with serve_pages(ANY, {"/": hello}) as at:
            began = asyncio.get_running_loop().time()
            held = [await asyncio.open_connection(at.host, at.port) for _ in range(3)]
            for _, writer in held:
                writer.write(b"GET / HTTP/1.1\r\nX: ")
            with suppress(ConnectionError):  # no room: closed at once
                assert await asked(at, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
            assert asyncio.get_running_loop().time() - began < 0.5
            for reader, writer in held:
                writer.write(b"x")
                with suppress(ConnectionError):
                    async with asyncio.timeout(5):
                        assert await reader.read() == b""
                writer.close()
            answer = await asked(at, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")


@both_loops
async def test_an_address_has_one_owner_unless_it_is_shared() -> None:
    async with serve_pages(ANY, {"/": hello}) as at:
        with pytest.raises(OSError):
            async with serve_pages(at, {"/": hello}):
                raise AssertionError("it serves on a port that is taken")
    async with serve_pages(ANY, {"/": hello}, reuse_port=True) as at:
        async with serve_pages(at, {"/": hello}, reuse_port=True) as same:
            assert same == at


@both_loops
async def test_the_end_does_not_wait_for_who_asks_slowly() -> None:
    before = open_sockets()
    async with asyncio.timeout(5):
        async with serve_pages(ANY, {"/": hello}) as at:
            _, writer = await asyncio.open_connection(at.host, at.port)
            writer.write(b"GET / HTTP/1.1\r\n")
            await writer.drain()
    writer.close()
    await until(lambda: open_sockets() <= before)
