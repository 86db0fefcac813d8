"""The pool: reuse, limits, idleness, failures in words, and real TLS."""

import asyncio
import dataclasses
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared.http.apiserver import ApiServer, Credential
from shared.http.status import Refusal
from shared.http.upstream import UpstreamConnection, UpstreamPool
from tests.fakes.upstream import (
    HOST_NAME,
    RawConnection,
    RawUpstream,
    Script,
    echo_heads,
    loopback_tls,
)

SERVER_TLS, CLIENT_TLS = loopback_tls()


class User:
    """Takes connections and remembers what it heard."""

    def __init__(self) -> None:
        self.connection: UpstreamConnection | None = None
        self.received = b""
        self.refusal: Refusal | None = None
        self.ended = False
        self.changed = asyncio.Event()

    def upstream_ready(self, connection: UpstreamConnection) -> None:
        self.connection = connection
        self.changed.set()

    def upstream_failed(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.changed.set()

    def upstream_received(self, data: bytes) -> None:
        self.received += data
        self.changed.set()

    def upstream_ended(self, error: Exception | None) -> None:
        self.ended = True
        self.changed.set()

    def upstream_drained(self) -> None:
        self.changed.set()

    async def wait(self) -> None:
        await asyncio.wait_for(self.changed.wait(), 10)
        self.changed.clear()


def make_pool(
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    **limits: float,
) -> UpstreamPool:
    loop = asyncio.get_running_loop()
    apiserver = ApiServer(
        host="127.0.0.1",
        port=port,
        tls=tls,
        server_hostname=server_hostname,
        credential=Credential(monotonic=loop.time),
    )
    return UpstreamPool(apiserver, loop=loop, **limits)  # type: ignore[arg-type]


@asynccontextmanager
async def pooled(
    script: Script = echo_heads, **limits: float
) -> AsyncIterator[UpstreamPool]:
    async with RawUpstream(script) as upstream:
        pool = make_pool(upstream.port, **limits)
        try:
            yield pool
        finally:
            await pool.close()


async def take(pool: UpstreamPool) -> tuple[User, UpstreamConnection]:
    user = User()
    connection = pool.take(user)
    if connection is None:
        await user.wait()
        connection = user.connection
    assert connection is not None, user.refusal
    return user, connection


async def until_gone(pool: UpstreamPool) -> None:
    async with asyncio.timeout(10):
        while pool.open_connections:
            await asyncio.sleep(0.001)


async def test_a_released_connection_serves_the_next_user_at_once() -> None:
    async with pooled() as pool:
        first, connection = await take(pool)
        assert not connection.is_reused
        connection.release()
        second = User()
        assert pool.take(second) is connection
        assert connection.is_reused and connection.user is second
        third = User()
        assert pool.take(third) is None
        await third.wait()
        assert third.connection is not connection
        assert pool.open_connections == 2


async def test_the_youngest_connection_is_taken_first() -> None:
    async with pooled() as pool:
        pairs = [await take(pool) for _ in range(3)]
        for _, connection in pairs:
            connection.release()
        assert pool.take(User()) is pairs[2][1]


async def test_a_fresh_connection_is_fresh() -> None:
    async with pooled() as pool:
        _, connection = await take(pool)
        connection.release()
        user = User()
        assert pool.take(user, is_fresh=True) is None
        await user.wait()
        assert user.connection is not connection


async def test_a_forgotten_user_hears_nothing_and_its_connection_is_kept() -> None:
    async with pooled() as pool:
        user = User()
        pool.take(user)
        pool.forget(user)
        async with asyncio.timeout(10):
            while not pool.idle_connections:
                await asyncio.sleep(0.001)
        assert user.connection is None


async def test_only_so_many_connections_idle_and_only_for_so_long() -> None:
    async with pooled(max_idle=2, idle_seconds=0.05) as pool:
        connections = [(await take(pool))[1] for _ in range(3)]
        for connection in connections:
            connection.release()
        assert pool.idle_connections == 2
        await until_gone(pool)
        assert pool.idle_connections == 0


async def test_beyond_the_limit_a_user_hears_which_limit() -> None:
    async with pooled(max_connections=1) as pool:
        _, connection = await take(pool)
        user = User()
        assert pool.take(user) is None
        await user.wait()
        assert user.refusal is not None and user.refusal.code == 503
        assert "1 connections" in user.refusal.message
        assert user.refusal.retry_after_seconds > 0
        connection.abort()
        await until_gone(pool)
        await take(pool)


async def test_a_connection_that_closes_while_idle_is_never_given_out() -> None:
    go_on = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        await go_on.wait()

    async with pooled(script) as pool:
        _, connection = await take(pool)
        connection.release()
        go_on.set()
        await until_gone(pool)
        user = User()
        assert pool.take(user) is None


async def test_an_aborted_connection_is_not_given_out_in_the_same_turn() -> None:
    async with pooled() as pool:
        _, connection = await take(pool)
        connection.release()
        connection.abort()
        assert pool.take(User()) is None


async def test_who_uses_a_connection_hears_of_its_end() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.send(b"bye")

    async with pooled(script) as pool:
        user, _ = await take(pool)
        while not user.ended:
            await user.wait()
        assert user.received == b"bye"


async def test_closing_the_pool_tells_everybody() -> None:
    async with pooled() as pool:
        user, _ = await take(pool)
        waiting = User()
        pool.take(waiting)
        await pool.close()
        assert user.ended
        assert waiting.refusal is not None and waiting.refusal.code == 503
        late = User()
        assert pool.take(late) is None
        await late.wait()
        assert late.refusal is not None and late.refusal.code == 503


async def failure(pool: UpstreamPool) -> str:
    user = User()
    assert pool.take(user) is None
    await user.wait()
    await pool.close()
    assert user.refusal is not None and user.refusal.code == 502
    assert f"127.0.0.1:{pool.apiserver.port}" in user.refusal.message
    return user.refusal.message


async def test_a_closed_port_is_connection_refused() -> None:
    async with RawUpstream(echo_heads) as upstream:
        pass
    assert "connection refused" in await failure(make_pool(upstream.port))


async def test_real_tls_connects_by_the_name_in_the_certificate() -> None:
    async with RawUpstream(echo_heads, tls=SERVER_TLS) as upstream:
        pool = make_pool(upstream.port, tls=CLIENT_TLS, server_hostname=HOST_NAME)
        user, connection = await take(pool)
        connection.write(b"GET / HTTP/1.1\r\n\r\n")
        await user.wait()
        assert user.received.endswith(b"GET / HTTP/1.1\r\n\r\n")
        await pool.close()


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_a_certificate_that_does_not_fit_is_named(is_trusted: bool) -> None:
    tls = CLIENT_TLS if is_trusted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with RawUpstream(echo_heads, tls=SERVER_TLS) as upstream:
        pool = make_pool(upstream.port, tls=tls, server_hostname="other.test")
        assert "certificate is not trusted" in await failure(pool)


async def test_a_port_that_speaks_no_tls_is_named() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.send(b"SSH-2.0-OpenSSH_9.6\r\n")
        await connection.read_to_end()

    async with RawUpstream(script) as upstream:
        pool = make_pool(upstream.port, tls=CLIENT_TLS, server_hostname=HOST_NAME)
        assert "TLS failed" in await failure(pool)


async def test_a_silent_port_is_given_up_in_time() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_to_end()

    async with RawUpstream(script) as upstream:
        pool = make_pool(
            upstream.port,
            tls=CLIENT_TLS,
            server_hostname=HOST_NAME,
            connect_timeout_seconds=0.1,
        )
        assert "no connection within 0.1 s" in await failure(pool)


async def test_what_came_while_paused_survives_the_apiservers_end() -> None:
    """A paused TLS transport of uvloop would drop it; kubectl exec's output ended early."""
    body = bytes(range(256)) * 4096

    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(body)

    async with RawUpstream(script, tls=SERVER_TLS) as upstream:
        pool = make_pool(upstream.port, tls=CLIENT_TLS, server_hostname=HOST_NAME)
        user, connection = await take(pool)
        connection.pause_reading()
        connection.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.1)  # time for the answer's end to be there too
        assert len(user.received) < len(body)
        connection.resume_reading()
        while not user.ended:
            await user.wait()
        assert user.received == body
        await pool.close()


async def test_after_a_renewal_nothing_of_the_old_address_is_used() -> None:
    async with RawUpstream(echo_heads) as other, pooled() as pool:
        _, used = await take(pool)
        _, idle = await take(pool)
        idle.release()
        old = pool.apiserver
        pool.renew(dataclasses.replace(old, port=other.port))
        assert pool.idle_connections == 0
        # A request that is being answered goes on, and its connection serves no other.
        assert used.is_open
        used.release()
        assert pool.idle_connections == 0
        _, fresh = await take(pool)
        assert len(other.connections) == 1
        fresh.release()
        assert pool.idle_connections == 1


async def test_a_connect_that_was_under_way_at_a_renewal_is_not_kept() -> None:
    async with pooled() as pool:
        user = User()
        assert pool.take(user) is None
        await asyncio.sleep(0)  # the connect begins
        pool.renew(pool.apiserver)
        await user.wait()
        assert user.connection is not None
        user.connection.release()
        assert pool.idle_connections == 0
