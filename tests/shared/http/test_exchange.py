"""One request and its answer, seen from the relay's side; most of it is in test_relay.py."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from shared.http.apiserver import ApiServer, Credential
from shared.http.exchange import Exchange
from shared.http.framing import CountedBody
from shared.http.status import Refusal
from shared.http.translation import Outgoing
from shared.http.upstream import UpstreamPool
from tests.fakes.upstream import RawConnection, RawUpstream, Script


class Client:
    """Remembers what its exchange told it."""

    def __init__(self) -> None:
        self.writing_is_paused = False
        self.output = b""
        self.events: list[object] = []
        self.statuses: list[int] = []
        self.changed = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.output += data
        self.changed.set()

    def _happened(self, event: object) -> None:
        self.events.append(event)
        self.changed.set()

    def exchange_can_send(self) -> None:
        self._happened("can send")

    def exchange_answered(self, status: int) -> None:
        self.statuses.append(status)

    def exchange_upgraded(self) -> None:
        self._happened("upgraded")

    def exchange_done(self, *, keep_alive: bool) -> None:
        self._happened(("done", keep_alive))

    def exchange_refused(self, refusal: Refusal) -> None:
        self._happened(("refused", refusal.code))

    def exchange_broken(self, reason: str) -> None:
        self._happened("broken")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def outgoing(*, length: int = 0) -> Outgoing:
    return Outgoing(
        method=b"PUT" if length else b"GET",
        target=b"/",
        first_bytes=b"%b / HTTP/1.1\r\n\r\n" % (b"PUT" if length else b"GET"),
        body=CountedBody(length) if length else None,
        upgrade=None,
        keeps_alive=True,
        prefix=b"/clusters/alpha",
        review=None,
    )


@asynccontextmanager
async def pooled(script: Script) -> AsyncIterator[tuple[UpstreamPool, RawUpstream]]:
    loop = asyncio.get_running_loop()
    async with RawUpstream(script) as upstream:
        apiserver = ApiServer(
            host="127.0.0.1",
            port=upstream.port,
            tls=None,
            server_hostname=None,
            credential=Credential(monotonic=loop.time),
        )
        pool = UpstreamPool(apiserver, loop=loop)
        try:
            yield pool, upstream
        finally:
            await pool.close()


async def test_the_connection_goes_back_only_after_a_whole_answer() -> None:
    async def script(connection: RawConnection) -> None:
        while True:
            await connection.read_head()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
            await go_on.wait()
            await connection.send(b"lf")

    go_on = asyncio.Event()
    async with pooled(script) as (pool, _):
        client = Client()
        exchange = Exchange(client, pool, outgoing())
        exchange.start()
        assert not exchange.can_send and not exchange.has_answered
        await client.until(lambda: client.output.endswith(b"ha"))
        assert exchange.can_send and exchange.has_answered
        assert pool.idle_connections == 0
        go_on.set()
        await client.until(lambda: ("done", True) in client.events)
        assert pool.idle_connections == 1
        assert client.events == ["can send", ("done", True)]
        assert client.statuses == [200]


async def test_an_abort_before_the_connection_is_there_is_silent() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_to_end()

    async with pooled(script) as (pool, upstream):
        client = Client()
        exchange = Exchange(client, pool, outgoing())
        exchange.start()
        exchange.abort()
        async with asyncio.timeout(10):
            while not pool.idle_connections:
                await asyncio.sleep(0.001)
        assert client.events == [] and not upstream.connections[0].received


async def test_a_stale_connection_is_replaced_once_and_not_twice() -> None:
    async def script(connection: RawConnection) -> None:
        if len(upstream.connections) == 1:
            await connection.read_head()
            await connection.respond(b"ok")
        await connection.read_head()  # and leaves without an answer

    async with pooled(script) as (pool, upstream):
        for expected in (("done", True), ("refused", 502)):
            client = Client()
            Exchange(client, pool, outgoing()).start()
            await client.until(lambda: client.events[-1:] not in ([], ["can send"]))  # noqa: B023
            assert client.events[-1] == expected
            # One answer, however often it was tried; none, if there was none.
            assert client.statuses == [200] * (expected[0] == "done")
        assert len(upstream.connections) == 2


async def test_an_answer_before_the_request_is_whole_ends_both_sides() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.respond(b"early")
        await connection.read_to_end()

    async with pooled(script) as (pool, upstream):
        client = Client()
        Exchange(client, pool, outgoing(length=5)).start()
        await client.until(lambda: ("done", False) in client.events)
        assert b"Connection: close\r\n" in client.output
        await asyncio.wait_for(upstream.connections[0].ended.wait(), 10)
        assert pool.idle_connections == 0
