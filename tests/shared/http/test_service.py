"""The whole request path as the agent wires it: client TLS, relay, pool, upstream TLS."""

import asyncio
import dataclasses
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from shared.errors import Code
from shared.http.apiserver import ApiServer, Credential
from shared.http.identity import Caller, Policy
from shared.http.relay import Limits
from shared.http.service import MAX_KNOWN_CALLERS, RequestService
from shared.http.status import Refusal
from shared.http.upstream import UpstreamPool
from shared.tunnel.tls import TlsEnd
from tests.fakes.relaying import make_caller
from tests.fakes.streams import SocketStream
from tests.fakes.upstream import (
    HOST_NAME,
    RawConnection,
    RawUpstream,
    Script,
    echo_heads,
    loopback_tls,
)

SERVER_TLS, CLIENT_TLS = loopback_tls()


A_DAY = timedelta(days=1)
GET = b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n"


def known(ssl_object: ssl.SSLObject) -> Caller:
    assert ssl_object.version() == "TLSv1.3"
    return make_caller(not_after=datetime.now(UTC) + timedelta(hours=1))


class Face:
    """The client's side: connections to the agent's TLS end."""

    def __init__(self, service: RequestService, port: int) -> None:
        self.service = service
        self.port = port
        self.streams: list[SocketStream] = []

    @asynccontextmanager
    async def connect(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=CLIENT_TLS, server_hostname=HOST_NAME
        )
        try:
            async with asyncio.timeout(30):
                yield reader, writer
        finally:
            writer.transport.abort()


@asynccontextmanager
async def sealed_face(
    script: Script, identify: Callable[[ssl.SSLObject], Caller] = known
) -> AsyncIterator[Face]:
    loop = asyncio.get_running_loop()
    async with RawUpstream(script, tls=SERVER_TLS) as upstream:
        apiserver = ApiServer(
            host="127.0.0.1",
            port=upstream.port,
            tls=CLIENT_TLS,
            server_hostname=HOST_NAME,
            credential=Credential(token="own", monotonic=loop.time),
        )
        pool = UpstreamPool(apiserver, loop=loop)
        service = RequestService(pool=pool, policy=Policy(), loop=loop)

        def make_handler(stream: SocketStream) -> TlsEnd:
            face.streams.append(stream)
            end = TlsEnd(
                SERVER_TLS,
                server_side=True,
                on_handshake=service.accept(identify),
                call_later=loop.call_later,
            )
            end.start(stream)
            return end

        server = await loop.create_server(
            lambda: SocketStream(make_handler), "127.0.0.1", 0
        )
        face = Face(service, server.sockets[0].getsockname()[1])
        try:
            yield face
        finally:
            server.close()
            service.end_all(Code.GOING_AWAY, "the test is over")
            assert service.open_connections == 0
            await pool.close()
            for stream in face.streams:
                stream.reset(Code.GOING_AWAY, "the test is over")
            await asyncio.sleep(0)


async def test_requests_pass_through_both_layers_of_tls() -> None:
    async with sealed_face(echo_heads) as face, face.connect() as (reader, writer):
        for _ in range(3):
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"GET /api HTTP/1.1\r\n")
            assert b"Impersonate-User: tower:admin\r\n" in head


async def test_large_bodies_arrive_whole_in_both_directions() -> None:
    total = 12 * 1024 * 1024
    up, down = random.Random(1).randbytes(total), random.Random(2).randbytes(total)

    async def script(connection: RawConnection) -> None:
        while True:
            await connection.read_head()
            assert await connection.read_exactly(total) == up
            await connection.respond(down)

    async with sealed_face(script) as face, face.connect() as (reader, writer):
        for _ in range(2):
            writer.write(
                b"PUT /clusters/alpha/x HTTP/1.1\r\nHost: h\r\n"
                b"Content-Length: %d\r\n\r\n" % total
            )
            for start in range(0, total, 65536):
                writer.write(up[start : start + 65536])
                await writer.drain()
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(total) == down
        assert face.streams[0].max_untaken <= 2 * face.streams[0].window


async def test_a_client_that_does_not_read_stops_the_apiserver() -> None:
    sent = 0

    async def script(connection: RawConnection) -> None:
        nonlocal sent
        await connection.read_head()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 256 * 1024 * 1024:
            await connection.send(b"x" * 65536)
            sent += 65536

    async with sealed_face(script) as face, face.connect() as (_, writer):
        writer.write(GET)
        previous = -1
        while previous != sent or not sent:
            previous = sent
            await asyncio.sleep(0.2)
        assert sent < 64 * 1024 * 1024


async def test_a_refused_caller_can_read_why() -> None:
    def identify(ssl_object: ssl.SSLObject) -> Caller:
        raise Refusal(code=403, message="this certificate is for beta")

    async with (
        sealed_face(echo_heads, identify) as face,
        face.connect() as (reader, writer),
    ):
        writer.write(GET)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"this certificate is for beta" in answer


async def test_a_refused_role_ends_the_stream_without_http() -> None:
    def identify(ssl_object: ssl.SSLObject) -> Caller:
        raise ValueError("the certificate has no role of ours")

    async with sealed_face(echo_heads, identify) as face:
        with pytest.raises(ConnectionError):
            async with face.connect() as (reader, writer):
                writer.write(GET)
                if not await reader.read():
                    raise ConnectionResetError
        assert face.streams[0].reset_with == (
            Code.REFUSED,
            "the certificate has no role of ours",
        )
        assert face.service.open_connections == 0


async def test_a_client_that_closes_cleanly_leaves_nothing_behind() -> None:
    async with sealed_face(echo_heads) as face:
        async with face.connect() as (reader, writer):
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(10):
            while face.service.open_connections:
                await asyncio.sleep(0.001)
        assert face.service.pool.idle_connections == 1


# Winding down


def wind_down(face: Face) -> None:
    for stream in face.streams:
        stream.handler.wind_down()


async def test_who_winds_down_ends_what_is_idle_and_says_so_in_time() -> None:
    """An idle connection ends cleanly; a new request is answered, and told that it is the last."""
    answer = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        while True:
            await connection.read_head()
            await answer.wait()
            await connection.respond(b"body")

    async with sealed_face(script) as face:
        face.service.limits = Limits(wind_down_seconds=0.3)
        began = asyncio.get_running_loop().time()
        async with face.connect() as (idle, _), face.connect() as (reader, busy):
            busy.write(GET)
            await until(lambda: face.service.pool.open_connections == 1)
            while not idle.at_eof():
                wind_down(face)
                await asyncio.sleep(0.01)
            # Before that it may have been about to ask.
            assert asyncio.get_running_loop().time() - began >= 0.3
            assert await idle.read() == b""  # close_notify and not a broken connection
            answer.set()
            assert (await reader.read()).endswith(b"Connection: close\r\n\r\nbody")
            await until(lambda: not face.service.open_connections)


async def test_a_connection_that_has_been_told_still_gets_its_next_request_served() -> (
    None
):
    async with sealed_face(echo_heads) as face, face.connect() as (reader, writer):
        for request in range(2):
            writer.write(GET)
            head = await reader.readuntil(b"\r\n\r\n")
            assert (b"Connection: close" in head) == (request == 1)
            if request == 0:
                await reader.readuntil(b"\r\n\r\n")
                wind_down(face)
        assert b"GET /api" in await reader.read()


async def test_an_answer_that_has_begun_goes_on_to_its_end() -> None:
    go_on = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        await go_on.wait()
        await connection.send(b"def")
        await connection.read()

    async with sealed_face(script) as face, face.connect() as (reader, writer):
        face.service.limits = Limits(wind_down_seconds=0.0)
        writer.write(GET)
        await reader.readuntil(b"abc")
        for _ in range(5):
            wind_down(face)
        go_on.set()
        assert await reader.read() == b"def"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_renewed_credential_is_used_on_connections_that_are_open() -> None:
    async with sealed_face(echo_heads) as face, face.connect() as (reader, writer):
        for token in ("own", "own", "renewed", "renewed"):
            if token == "renewed":
                credential = Credential(token=token, monotonic=lambda: 0.0)
                face.service.renew(
                    dataclasses.replace(
                        face.service.pool.apiserver, credential=credential
                    )
                )
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Authorization: Bearer %b\r\n" % token.encode() in head


async def test_connections_of_one_caller_share_what_is_known_and_no_others_do() -> None:
    """The same fields from different callers: each request runs as its own caller."""
    callers = [make_caller(groups=("tower:cluster-admins",) * n) for n in range(3)]
    coming = iter([*callers, *callers])

    def identify(ssl_object: ssl.SSLObject) -> Caller:
        caller = next(coming)
        return dataclasses.replace(
            caller, not_after=datetime.now(UTC).replace(microsecond=0) + A_DAY
        )

    async with sealed_face(echo_heads, identify) as face:
        for groups in (0, 1, 2, 0, 1, 2):
            async with face.connect() as (reader, writer):
                for _ in range(2):
                    writer.write(GET)
                    await reader.readuntil(b"\r\n\r\n")
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.count(b"Impersonate-Group: ") == groups


async def test_a_bounded_number_of_callers_is_known() -> None:
    async with sealed_face(echo_heads) as face:
        service = face.service
        for serial in range(MAX_KNOWN_CALLERS + 5):
            service._translator(make_caller(serial=serial))
        assert len(service._translators) == MAX_KNOWN_CALLERS
        assert make_caller(serial=0) not in service._translators
        last = make_caller(serial=MAX_KNOWN_CALLERS + 4)
        assert service._translator(last) is service._translator(last)
        service.renew(dataclasses.replace(service.pool.apiserver, host="127.0.0.2"))
        assert b"Host: 127.0.0.2:" in service._translator(last)(GET).first_bytes
