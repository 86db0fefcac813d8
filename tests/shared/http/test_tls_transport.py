"""The client's TLS over a TCP transport, before a peer that does its own TLS by hand.

Covered: bytes both ways in all sizes, TLS 1.2 and 1.3, the end with and without close_notify,
handshakes that fail, break off or are given up, a certificate that is refused later, pausing
in both directions, and what OpenSSL's buffers hold.
"""

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from shared.http.tls_transport import SLICE_BYTES, TlsTransport, open_tls
from tests.fakes.upstream import HOST_NAME, loopback_tls

SERVER, CLIENT = loopback_tls()
SECONDS = 10.0
Result = TypeVar("Result")


class Peer:
    """A TLS server of which each byte on the wire is the test's own decision."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer
        self.arriving, self.leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = SERVER.wrap_bio(self.arriving, self.leaving, server_side=True)

    async def _until_done(self, step: Callable[[], Result]) -> Result:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.flush()
                data = await self.reader.read(65536)
                if not data:
                    raise EOFError from None
                self.arriving.write(data)
            finally:
                self.flush()

    def flush(self) -> None:
        if self.leaving.pending:
            self.writer.write(self.leaving.read())

    async def shake(self) -> None:
        await self._until_done(self.tls.do_handshake)

    async def read(self) -> bytes:
        """What comes next; empty when the client has said close_notify."""
        try:
            return await self._until_done(lambda: self.tls.read(65536))
        except ssl.SSLZeroReturnError:
            return b""

    async def read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += await self.read()
        return data

    def write(self, data: bytes) -> None:
        self.tls.write(data)
        self.flush()

    def say_close(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.flush()


class Above(asyncio.Protocol):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.events: list[str] = []
        self.lost_with: list[Exception | None] = []
        self.on_data: Callable[[], None] = lambda: None

    def data_received(self, data: bytes) -> None:
        assert not self.lost_with and data
        self.received += data
        self.on_data()

    def eof_received(self) -> bool:
        self.events.append("eof")
        return True  # which TLS does not heed

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost_with.append(error)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def tcp_to(
    script: Callable[[Peer], Awaitable[None]],
) -> AsyncIterator[asyncio.Transport]:
    """A TCP transport to a peer that does what the script says, and then closes."""
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(EOFError, ConnectionError):
                await script(Peer(reader, writer))
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(serve(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_connection(
        asyncio.Protocol, "127.0.0.1", port
    )
    try:
        yield transport
    finally:
        transport.abort()
        server.close()
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def secured(
    transport: asyncio.Transport, context: ssl.SSLContext = CLIENT
) -> tuple[Above, TlsTransport]:
    above = Above()
    async with asyncio.timeout(SECONDS):
        secure = await open_tls(transport, above, context, server_hostname=HOST_NAME)
    return above, secure


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_bytes_pass_in_both_directions_in_all_sizes(
    version: ssl.TLSVersion,
) -> None:
    chance = random.Random(1)
    sizes = [1, 1000, 16384, 16385, SLICE_BYTES, SLICE_BYTES + 1, 300_000, 3_000_000]

    async def echo(peer: Peer) -> None:
        await peer.shake()
        for size in sizes:
            peer.write(await peer.read_exactly(size))

    context = loopback_tls()[1]
    context.minimum_version = context.maximum_version = version
    async with tcp_to(echo) as transport:
        above, secure = await secured(transport, context)
        assert secure.get_extra_info("ssl_object").version() == version.name.replace(
            "v1_", "v1."
        )
        for size in sizes:
            data = chance.randbytes(size)
            above.received.clear()
            secure.write(data)
            await above.until(lambda: len(above.received) == size)  # noqa: B023
            assert above.received == data
        # What has been said arrives before the end, which is a clean one.
        await above.until(lambda: bool(above.lost_with))


async def test_an_end_that_tls_announces_is_a_clean_one() -> None:
    heard: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.shake()
        peer.write(b"last words")
        peer.say_close()
        heard.append(await peer.read())  # empty: our close_notify came back

    async with tcp_to(script) as transport:
        above, secure = await secured(transport)
        await above.until(lambda: bool(above.lost_with and heard))
        assert (above.received, above.events) == (b"last words", ["eof"])
        assert above.lost_with == [None] and heard == [b""]
        assert secure.is_closing()
        secure.write(b"nobody")
        secure.close()


async def test_an_end_that_tls_does_not_announce_is_an_error() -> None:
    """Else somebody in between could cut an answer that has no length, unseen."""

    async def script(peer: Peer) -> None:
        await peer.shake()
        peer.write(b"half of")

    async with tcp_to(script) as transport:
        above, _ = await secured(transport)
        await above.until(lambda: bool(above.lost_with))
        assert above.received == b"half of" and not above.events
        assert isinstance(above.lost_with[0], ConnectionResetError)


async def test_closing_says_so_behind_what_was_written() -> None:
    heard: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.shake()
        while data := await peer.read():
            heard.append(data)
        heard.append(b"close_notify")

    async with tcp_to(script) as transport:
        above, secure = await secured(transport)
        secure.write(b"a" * 100_000)
        secure.close()
        await above.until(lambda: heard[-1:] == [b"close_notify"])
        await above.until(lambda: bool(above.lost_with))
        assert b"".join(heard[:-1]) == b"a" * 100_000
        assert above.lost_with == [None]


async def test_a_peer_that_is_not_trusted_is_refused_and_told() -> None:
    alerts: list[str] = []

    async def script(peer: Peer) -> None:
        try:
            await peer.shake()
            await peer.read()
        except ssl.SSLError as error:
            alerts.append(str(error.reason))

    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with tcp_to(script) as transport:
        with pytest.raises(ssl.SSLCertVerificationError):
            await secured(transport, stranger)
        await Above().until(lambda: bool(alerts))
        assert "UNKNOWN_CA" in alerts[0].upper()


async def test_garbage_and_silence_and_hanging_up_end_a_handshake() -> None:
    async def garbage(peer: Peer) -> None:
        peer.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.reader.read()

    async def hang_up(peer: Peer) -> None:
        await peer.reader.read(1)

    async def silence(peer: Peer) -> None:
        await peer.reader.read()

    async with tcp_to(garbage) as transport:
        with pytest.raises(ssl.SSLError):
            await secured(transport)
    async with tcp_to(hang_up) as transport:
        with pytest.raises(ConnectionError):
            await secured(transport)
        with pytest.raises(ConnectionError):  # it has gone already
            await secured(transport)
    async with tcp_to(silence) as transport:
        above = Above()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await open_tls(transport, above, CLIENT, server_hostname=HOST_NAME)
        assert not transport.is_closing()
        transport.abort()
        await asyncio.sleep(0)
        assert not above.lost_with


async def test_broken_records_end_it_after_what_came_whole() -> None:
    async def script(peer: Peer) -> None:
        await peer.shake()
        peer.tls.write(b"whole")
        whole = peer.leaving.read()
        peer.tls.write(b"broken")
        broken = bytearray(peer.leaving.read())
        broken[-1] ^= 1
        peer.writer.write(whole + broken)
        await peer.reader.read()

    async with tcp_to(script) as transport:
        above, _ = await secured(transport)
        await above.until(lambda: bool(above.lost_with))
        assert above.received == b"whole" and not above.events
        assert isinstance(above.lost_with[0], ssl.SSLError)


async def test_who_ends_it_while_data_comes_gets_no_more_of_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.shake()
        peer.write(b"x" * 1000)
        peer.say_close()
        await peer.reader.read()

    async with tcp_to(script) as transport:
        above, secure = await secured(transport)
        above.on_data = secure.abort
        await above.until(lambda: bool(above.lost_with))
        assert not above.events and above.lost_with == [None]


async def test_a_peer_that_does_not_read_pauses_the_writer_until_it_does() -> None:
    go_on = asyncio.Event()
    total = 0

    async def script(peer: Peer) -> None:
        nonlocal total
        await peer.shake()
        await go_on.wait()
        while data := await peer.read():
            total += len(data)

    async with tcp_to(script) as transport:
        above, secure = await secured(transport)
        secure.set_write_buffer_limits(high=100_000)
        written = 0
        while "pause" not in above.events:
            secure.write(bytes(200_000))
            written += 200_000
            await asyncio.sleep(0)
        assert secure.get_write_buffer_size() > 0
        go_on.set()
        await above.until(lambda: "resume" in above.events)
        secure.close()
        await above.until(lambda: total == written)


async def test_pausing_the_transport_below_stops_the_peer_and_loses_nothing() -> None:
    data = random.Random(2).randbytes(5_000_000)

    async def script(peer: Peer) -> None:
        await peer.shake()
        for start in range(0, len(data), 50_000):
            peer.write(data[start : start + 50_000])
            await peer.writer.drain()
        peer.say_close()
        await peer.reader.read()

    async with tcp_to(script) as transport:
        above, _ = await secured(transport)
        transport.pause_reading()
        await asyncio.sleep(0.05)
        stood_at = len(above.received)
        await asyncio.sleep(0.05)
        assert len(above.received) == stood_at < len(data)
        transport.resume_reading()
        await above.until(lambda: bool(above.lost_with))
        assert above.received == data and above.events == ["eof"]


async def test_openssls_buffers_hold_a_slice_at_most() -> None:
    async def script(peer: Peer) -> None:
        await peer.shake()
        await peer.read()

    async with tcp_to(script) as transport:
        above, secure = await secured(transport)
        pieces: list[int] = []

        class Below(asyncio.Transport):
            def write(self, data: bytes | bytearray | memoryview) -> None:
                pieces.append(len(data))

        secure._transport = Below()
        secure.write(bytes(10 * SLICE_BYTES))
        assert len(pieces) == 10 and max(pieces) < SLICE_BYTES + 200
        secure._transport = transport
        read, held = secure._read, []

        def watched(into: list[bytes]) -> bool:
            held.append(secure._incoming.pending)
            return read(into)

        secure._read = watched  # type: ignore[method-assign]
        with contextlib.suppress(ssl.SSLError):
            secure._decrypt(b"\x17\x03\x03\x40\x00" + bytes(5 * SLICE_BYTES), [])
        assert held and max(held) <= SLICE_BYTES
        assert not above.received
