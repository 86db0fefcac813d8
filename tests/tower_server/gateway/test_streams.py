"""The warm streams to a member: when they are opened, who gets one, when they go.

Through a real tunnel with an agent's end; what counts is what the pool holds.
"""

import asyncio

import pytest

from certs.names import parse_cluster_name
from shared.http.status import Refusal
from shared.http.upstream import Upstream
from tests.fakes.gateway import GatewayBench, Site
from tests.fakes.host_side import until
from tower_server.gateway import streams
from tower_server.gateway.streams import WARM_STREAMS, SessionStreams


class User:
    """Takes a stream and notes what it is told."""

    def __init__(self) -> None:
        self.stream: Upstream | None = None
        self.refusal: Refusal | None = None
        self.received = b""
        self.has_ended = False

    def upstream_ready(self, connection: Upstream) -> None:
        self.stream = connection

    def upstream_failed(self, refusal: Refusal) -> None:
        self.refusal = refusal

    def upstream_received(self, data: bytes) -> None:
        self.received += data

    def upstream_ended(self, error: Exception | None) -> None:
        self.has_ended = True

    def upstream_drained(self) -> None:
        pass

    async def take(self, pool: SessionStreams, *, is_fresh: bool = False) -> Upstream:
        self.stream = pool.take(self, is_fresh=is_fresh)
        await until(lambda: self.stream is not None or self.refusal is not None)
        assert self.stream is not None, self.refusal
        return self.stream


def pool_of(bench: GatewayBench) -> SessionStreams:
    session = bench.host.registry.pick(parse_cluster_name("alpha"))
    assert session is not None
    return bench.host.gateway.pools.of(session)


async def warm(bench: GatewayBench) -> SessionStreams:
    pool = pool_of(bench)
    (await User().take(pool)).release()
    await until(lambda: pool.idle_streams == WARM_STREAMS + 1)
    return pool


async def test_the_first_request_has_others_opened_in_advance() -> None:
    async with GatewayBench() as bench:
        site = await bench.connect()
        assert not site.streams  # nobody has asked for anything
        pool = await warm(bench)
        assert len(site.streams) == WARM_STREAMS + 1
        (await User().take(pool)).release()
        assert len(site.streams) == WARM_STREAMS + 1


async def test_an_upgrade_gets_one_that_nobody_has_used() -> None:
    async with GatewayBench() as bench:
        site = await bench.connect()
        pool = await warm(bench)
        opened = len(site.streams)
        stream = pool.take(User(), is_fresh=True)
        assert stream is not None and not stream.is_reused
        assert len(site.streams) == opened


async def test_many_at_once_each_get_their_own() -> None:
    async with GatewayBench() as bench:
        await bench.connect()
        pool = pool_of(bench)
        users = [User() for _ in range(30)]
        taken = await asyncio.gather(*(user.take(pool) for user in users))
        assert len({id(stream) for stream in taken}) == 30
        for stream in taken:
            stream.release()


async def test_who_forgets_leaves_the_stream_to_the_next() -> None:
    async with GatewayBench() as bench:
        await bench.connect()
        pool = pool_of(bench)
        first = User()
        assert pool.take(first) is None
        pool.forget(first)
        await User().take(pool)
        assert first.stream is None


async def test_what_is_idle_for_long_goes_and_the_pool_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(streams, "KEEP_WARM_SECONDS", 0.0)
    async with GatewayBench() as bench:
        site = await bench.connect()
        (await User().take(pool_of(bench))).release()
        await until(lambda: not len(bench.host.gateway.pools))
        await until(lambda: not site.sealed.open_connections)


async def test_while_it_is_used_what_goes_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "IDLE_SECONDS", 0.05)
    async with GatewayBench() as bench:
        site = await bench.connect()
        pool = await warm(bench)
        await until(lambda: len(site.streams) > 3 * WARM_STREAMS)
        assert pool.open_streams <= 2 * WARM_STREAMS + 2


async def test_a_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 2)
    async with GatewayBench() as bench:
        await bench.connect()
        pool = pool_of(bench)
        for _ in range(2):
            await User().take(pool)
        late = User()
        assert pool.take(late) is None
        await until(lambda: late.refusal is not None)
        assert late.refusal is not None and late.refusal.code == 503


async def test_the_end_of_the_tunnel_ends_its_streams() -> None:
    async with GatewayBench() as bench:
        site: Site = await bench.connect()
        pool = pool_of(bench)
        user = User()
        await user.take(pool)
        assert site.agent is not None
        site.agent.tunnel.abort("the test cuts it")
        await until(lambda: user.has_ended)
        await until(lambda: not len(bench.host.gateway.pools))


async def test_an_answer_that_nobody_reads_waits_at_the_member() -> None:
    async with GatewayBench() as bench:
        await bench.connect()
        user = User()
        stream = await user.take(pool_of(bench))
        stream.pause_reading()
        stream.write(
            b"GET /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nX-Remote-User: tower:admin\r\n\r\n"
        )
        await until(lambda: stream._held)  # type: ignore[attr-defined]
        assert not user.received
        stream.resume_reading()
        assert user.received.startswith(b"HTTP/1.1 200 ")


async def test_bytes_that_nobody_asked_for_end_the_stream() -> None:
    async with GatewayBench() as bench:
        site = await bench.connect()
        pool = await warm(bench)
        stream = pool._idle[0]
        stream.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
        assert not stream.is_open and stream not in pool._idle
        assert site.agent is not None
