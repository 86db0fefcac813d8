"""A TCP connection to the server, straight or through a proxy, on both event loops.

Covered: several addresses of a name, addresses that refuse or swallow packets, proxies that
refuse, talk nonsense, say nothing, hang up, or say too much; nothing is left open.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from shared import outbound
from shared.outbound import MAX_PROXY_ANSWER_BYTES, Proxy, ProxyRefused, open_socket
from tests.fakes.dialling import LOOPBACK
from tests.fakes.host_side import open_sockets, until
from tests.fakes.tunnel_pair import both_loops
from tests.fakes.upstream import RawConnection, RawUpstream


async def greet(connection: RawConnection) -> None:
    await connection.send(b"hello")
    await connection.read_to_end()


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    before = open_sockets()
    yield
    await until(lambda: open_sockets() <= before)


@contextlib.contextmanager
def swallowing_port() -> Iterator[int]:
    """A loopback port whose SYNs are dropped: its backlog is full and nobody accepts."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((LOOPBACK, 0))
        listening.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


class _Named:
    """A loop with another getaddrinfo: uvloop's cannot be patched."""

    def __init__(self, loop: asyncio.AbstractEventLoop, getaddrinfo: object) -> None:
        self._loop = loop
        self.getaddrinfo = getaddrinfo

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)


@contextlib.contextmanager
def resolving_to(*ports: int) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    async def getaddrinfo(
        host: str, port: int, **_: object
    ) -> list[tuple[object, ...]]:
        assert host == "tower.test"
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (LOOPBACK, each)) for each in ports]

    class Asyncio:
        timeout = staticmethod(asyncio.timeout)

        @staticmethod
        def get_running_loop() -> _Named:
            return _Named(loop, getaddrinfo)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbound, "asyncio", Asyncio)
        yield


@both_loops
async def test_the_socket_is_connected_and_does_not_block() -> None:
    async with nothing_left(), RawUpstream(greet) as server:
        with await open_socket(LOOPBACK, server.port, None) as connected:
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(connected, 5) == b"hello"
            assert not connected.getblocking()


@both_loops
async def test_the_next_address_is_tried_when_one_refuses_or_is_silent() -> None:
    async with RawUpstream(greet) as gone:
        refusing = gone.port
    with swallowing_port() as silent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbound, "ADDRESS_TIMEOUT_SECONDS", 0.1)
        async with nothing_left(), RawUpstream(greet) as server:
            with resolving_to(refusing, silent, server.port):
                connected = await open_socket("tower.test", 1, None)
            assert connected.getpeername()[1] == server.port
            connected.close()


@both_loops
async def test_the_last_address_says_why_there_is_no_connection() -> None:
    async with RawUpstream(greet) as gone:
        refusing = gone.port
    with swallowing_port() as silent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbound, "ADDRESS_TIMEOUT_SECONDS", 0.1)
        async with nothing_left():
            with resolving_to(silent, refusing):
                with pytest.raises(ConnectionRefusedError):
                    await open_socket("tower.test", 1, None)
            with resolving_to(refusing, silent), pytest.raises(TimeoutError):
                await open_socket("tower.test", 1, None)
            with resolving_to(), pytest.raises(OSError, match="no address"):
                await open_socket("tower.test", 1, None)


@both_loops
async def test_cancelling_closes_the_socket() -> None:
    async with nothing_left():
        with swallowing_port() as silent:
            before = open_sockets()
            opening = asyncio.ensure_future(open_socket(LOOPBACK, silent, None))
            await until(lambda: open_sockets() > before)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening


# Proxies


async def through(answer: bytes | None, *, stays: bool = False) -> bytes:
    """Open a socket through a proxy that answers this, and return what the proxy heard."""

    async def proxy(connection: RawConnection) -> None:
        await connection.read_head()
        if answer is not None:
            await connection.send(answer)
        if stays:
            await connection.read_to_end()

    async with nothing_left(), RawUpstream(proxy) as server:
        using = Proxy(host=LOOPBACK, port=server.port, user="agent", password="secret")
        try:
            (await open_socket("2001:db8::1", 443, using)).close()
        finally:
            # Also after a failure: the proxy sees the connection end.
            await until(lambda: not server._tasks)
        return bytes(server.connections[0].received)


@both_loops
async def test_a_proxy_is_asked_for_the_server_with_its_login() -> None:
    heard = await through(b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n")
    assert heard.startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n")
    assert b"\r\nHost: [2001:db8::1]:443\r\n" in heard
    assert b"\r\nProxy-Authorization: Basic YWdlbnQ6c2VjcmV0\r\n" in heard


@both_loops
async def test_a_proxy_that_refuses_is_not_a_connection() -> None:
    for answer, status in (
        (b"HTTP/1.1 407 Who are you\r\n\r\n", 407),
        (b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno", 403),
    ):
        with pytest.raises(ProxyRefused) as raised:
            await through(answer, stays=True)
        assert raised.value.status == status


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"HTTP/1.1 200 OK\r\nX: y",
        b"220 smtp.example ESMTP\r\n\r\n",
        b"HTTP/1.1 ok\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nwelcome",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (MAX_PROXY_ANSWER_BYTES // 6),
    ],
)
async def test_a_proxy_that_makes_no_sense_is_not_a_connection(
    answer: bytes | None,
) -> None:
    with pytest.raises(ConnectionError, match="the proxy"):
        await through(answer or b"")


@both_loops
async def test_a_proxy_that_says_nothing_keeps_no_socket_when_we_give_up() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await through(None, stays=True)
