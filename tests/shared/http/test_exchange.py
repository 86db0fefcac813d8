"""One request and its answer, seen from the relay's side; most of it is in test_relay.py."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.http.apiserver import ApiServer, Credential
from shared.http.exchange import Exchange
from shared.http.framing import CountedBody
from shared.http.status import Refusal
from shared.http.translation import Outgoing
from shared.http.upstream import UpstreamConnection, UpstreamPool
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


class Wire(asyncio.Transport):
    """The apiserver's side of a connection, without an apiserver."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.is_over = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def set_write_buffer_limits(
        self, high: int | None = None, low: int | None = None
    ) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_over

    def abort(self) -> None:
        self.is_over = True


async def outcome(method: bytes, pieces: list[bytes]) -> object:
    """What becomes of the client and of the connection when an answer comes like that."""
    loop = asyncio.get_running_loop()
    apiserver = ApiServer(
        host="::1",
        port=1,
        tls=None,
        server_hostname=None,
        credential=Credential(monotonic=loop.time),
    )
    pool = UpstreamPool(apiserver, loop=loop)
    connection, wire, client = UpstreamConnection(pool), Wire(), Client()
    connection.connection_made(wire)
    pool.released(connection)
    request = outgoing()
    request.method = method
    Exchange(client, pool, request).start()
    for piece in pieces:
        if not wire.is_over:
            connection.data_received(piece)
    fate = (wire.is_over, pool.idle_connections)
    await pool.close()
    return client.output, client.events, client.statuses, fate


ANSWERS = st.builds(
    lambda status, fields, body: b"%b\r\n%b\r\n%b" % (status, b"".join(fields), body),
    st.sampled_from(
        [b"HTTP/1.1 200 OK"] * 4
        + [b"HTTP/1.1 100 Continue", b"HTTP/1.1 301 Moved", b"HTTP/1.1 401 No"]
        + [
            b"HTTP/1.0 200 OK",
            b"HTTP/1.1 204 None",
            b"HTTP/1.1 101 Switch",
            b"HTTP/2 200",
        ]
    ),
    st.lists(
        st.sampled_from(
            [b"Content-Length: 4\r\n"] * 4
            + [b"Content-Length: 0\r\n", b"Content-Length: 5\r\n", b"A: b\r\n"]
            + [b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"A : b\r\n"]
            + [b"Transfer-Encoding: chunked\r\n", b"Upgrade: websocket\r\n"]
            + [b"Location: /api\r\n", b"Date: today\r\n", b"content-length:4\r\n"]
        ),
        max_size=4,
    ),
    st.sampled_from([b"body", b"", b"more body", b"4\r\nbody\r\n0\r\n\r\n", b"bo"]),
)


@settings(max_examples=400)
@given(
    method=st.sampled_from([b"GET", b"GET", b"HEAD", b"DELETE"]),
    answer=ANSWERS,
    cut=st.integers(0, 60),
)
async def test_an_answer_that_comes_whole_fares_as_one_that_comes_in_two(
    method: bytes, answer: bytes, cut: int
) -> None:
    """What is passed on at a glance is what reading it carefully would pass on."""
    # Cut within its first head: a plain answer is then not seen at a glance.
    cut = 1 + cut % answer.index(b"\r\n\r\n")
    whole = await outcome(method, [answer])
    assert whole == await outcome(method, [answer[:cut], answer[cut:]])
