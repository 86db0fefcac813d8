"""A local connection through a tunnel and out on the other side, over real sockets.

Covered: bytes both ways, bulk with checksums, half-close in both orders, resets in both
directions, a target that does not answer, stalled readers; on both event loops. And the
two ends alone against fakes: bytes before the socket is there, drained credit.
"""

import asyncio
import hashlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from shared.errors import Code, StreamReset
from shared.tunnel.connection import UNSENT_BYTES as TUNNEL_UNSENT_BYTES
from shared.tunnel.relay import (
    DRAINED_BYTES,
    READ_BYTES,
    UNSENT_BYTES,
    WRITE_FIRST_BYTES,
    WRITE_HIGH_BYTES,
    relay_pair,
)
from tests.fakes.tunnel_pair import LOOPBACK, TunnelPair, both_loops

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def through(serve: Serve) -> AsyncIterator[TunnelPair]:
    """A tunnel whose upstream answers with `serve`."""

    async def served(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()

    upstream = await asyncio.start_server(served, LOOPBACK, 0)
    async with TunnelPair(upstream.sockets[0].getsockname()[:2]) as pair:
        yield pair
    upstream.close()


@asynccontextmanager
async def connected(
    pair: TunnelPair,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(LOOPBACK, pair.entry_port)
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.transport.abort()


def end_with_reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.transport.abort()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@both_loops
async def test_what_goes_in_comes_back() -> None:
    async with through(echo) as pair, connected(pair) as (reader, writer):
        for text in (b"a", b"hello", bytes(70_000)):
            writer.write(text)
            assert await reader.readexactly(len(text)) == text
        writer.write_eof()
        assert await reader.read() == b""
        (stream,) = pair.server_owner.accepted
        assert stream.target == "tcp/upstream"


@both_loops
async def test_twenty_megabytes_each_way_arrive_whole() -> None:
    block = random.Random(3).randbytes(1_000_003)

    async def send(writer: asyncio.StreamWriter) -> str:
        digest = hashlib.sha256()
        for number in range(20):
            piece = block[number:] + block[:number]
            digest.update(piece)
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
        return digest.hexdigest()

    async def receive(reader: asyncio.StreamReader) -> str:
        digest = hashlib.sha256()
        while data := await reader.read(256 * 1024):
            digest.update(data)
        return digest.hexdigest()

    upstream: list[str] = []

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.extend(await asyncio.gather(send(writer), receive(reader)))

    async with through(both) as pair, connected(pair) as (reader, writer):
        ours = await asyncio.gather(send(writer), receive(reader))
        while not upstream:
            await asyncio.sleep(0.005)
        assert len({*ours, *upstream}) == 1


@both_loops
async def test_either_side_may_stop_writing_first() -> None:
    async def answer_after_eof(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        question = await reader.read()
        writer.write(b"you said " + question)
        writer.write_eof()

    async with through(answer_after_eof) as pair:
        async with connected(pair) as (reader, writer):
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"you said hello"
        await streams_are_gone(pair)

    heard: list[bytes] = []

    async def speak_first(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"banner")
        writer.write_eof()
        heard.append(await reader.read())

    async with through(speak_first) as pair:
        async with connected(pair) as (reader, writer):
            assert await reader.read() == b"banner"
            writer.write(b"still talking")
            writer.write_eof()
            await streams_are_gone(pair)
        assert heard == [b"still talking"]


async def streams_are_gone(pair: TunnelPair) -> None:
    async with asyncio.timeout(5):
        while pair.server.session.streams or pair.agent.session.streams:
            await asyncio.sleep(0.005)


@both_loops
async def test_a_caller_that_resets_resets_the_upstream() -> None:
    ends: list[str] = []

    async def until_reset(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"ready")
        try:
            ends.append(f"clean after {len(await reader.read())}")
        except ConnectionResetError:
            ends.append("reset")

    async with through(until_reset) as pair, connected(pair) as (reader, writer):
        assert await reader.readexactly(5) == b"ready"
        end_with_reset(writer)
        await streams_are_gone(pair)
        while not ends:
            await asyncio.sleep(0.005)
        assert ends == ["reset"]


@both_loops
async def test_an_upstream_that_resets_is_no_clean_end_for_the_caller() -> None:
    async def break_off(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readexactly(1)
        end_with_reset(writer)

    async with through(break_off) as pair, connected(pair) as (reader, writer):
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await streams_are_gone(pair)


@both_loops
async def test_a_target_that_does_not_answer_resets_the_caller() -> None:
    async with TunnelPair(upstream=(LOOPBACK, 1)) as pair:
        async with connected(pair) as (reader, writer):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await streams_are_gone(pair)


@both_loops
async def test_a_stalled_reader_stalls_nobody_else() -> None:
    """One caller asks for 30 MB and does not read; the others do not notice."""
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        if await reader.readexactly(1) == b"f":
            for _ in range(300):
                writer.write(bytes(100_000))
                await writer.drain()
                sent += 100_000
        else:
            await echo(reader, writer)

    async with through(flood) as pair:
        async with connected(pair) as (lazy, lazy_writer):
            lazy_writer.transport.pause_reading()
            lazy_writer.write(b"f")
            while not sent or await moves(lambda: sent):
                await asyncio.sleep(0.01)
            assert sent < 29_000_000, "backpressure reached the upstream"
            async with connected(pair) as (reader, writer):
                writer.write(b"e")
                for number in range(50):
                    text = b"%d" % number * 100
                    writer.write(text)
                    assert await reader.readexactly(len(text)) == text
            lazy_writer.transport.resume_reading()
            assert len(await lazy.read()) == 30_000_000


async def moves(number: Callable[[], int]) -> bool:
    before = number()
    await asyncio.sleep(0.15)
    return number() != before


# The two ends alone


class FakeStream:
    """The near half of a stream that only notes calls."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.taken_bytes = 0
        self.eofs = 0
        self.resets: list[tuple[Code, str]] = []
        self.room_bytes = 64 * 1024

    def write(self, data: bytes | memoryview) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.eofs += 1

    def reset(self, code: Code, reason: str) -> None:
        self.resets.append((code, reason))

    def taken(self, count: int) -> None:
        self.taken_bytes += count


class FakeTransport(asyncio.Transport):
    """A socket's transport that only notes calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.written = bytearray()
        self.closing = False
        # What write_eof raises, as when the peer reset a moment ago.
        self.eof_error: OSError | None = None

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        self.high_bytes = high

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data) -> None:
        assert not self.closing
        self.written += data

    def write_eof(self) -> None:
        self.calls.append("eof")
        if self.eof_error is not None:
            raise self.eof_error

    def close(self) -> None:
        self.closing = True
        self.calls.append("close")

    def abort(self) -> None:
        self.closing = True
        self.calls.append("abort")

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


def test_bytes_before_the_socket_wait_uncredited_and_keep_their_order() -> None:
    stream, transport = FakeStream(), FakeTransport()
    socket_end, stream_end = relay_pair(stream)
    stream_end.data_received(b"one ")
    stream_end.data_received(memoryview(b"two"))
    stream_end.eof_received()
    assert stream.taken_bytes == 0
    socket_end.connection_made(transport)
    assert (transport.written, transport.calls) == (b"one two", ["eof"])
    assert stream.taken_bytes == 7


def test_a_stream_that_ends_before_the_socket_is_there_closes_it_at_once() -> None:
    stream, transport, ends = FakeStream(), FakeTransport(), []
    socket_end, stream_end = relay_pair(stream, lambda: ends.append("over"))
    stream_end.data_received(b"too late")
    stream_end.stream_closed(StreamReset(Code.CANCELLED, "gone"))
    assert ends == ["over"]
    socket_end.connection_made(transport)
    assert transport.calls == ["abort"]
    socket_end.connection_lost(None)
    assert ends == ["over"] and stream.resets == []


def test_what_a_full_socket_holds_is_credited_when_it_drains() -> None:
    stream, transport = FakeStream(), FakeTransport()
    socket_end, stream_end = relay_pair(stream)
    socket_end.connection_made(transport)
    stream_end.data_received(b"abc")
    socket_end.pause_writing()
    stream_end.data_received(b"defg")
    assert stream.taken_bytes == 3
    socket_end.resume_writing()
    assert stream.taken_bytes == 7


def test_a_socket_that_drains_again_and_again_may_hold_more() -> None:
    stream, transport = FakeStream(), FakeTransport()
    socket_end, stream_end = relay_pair(stream)
    socket_end.connection_made(transport)
    piece = bytes(32 * 1024)
    for _ in range(DRAINED_BYTES // len(piece)):
        assert transport.high_bytes == WRITE_FIRST_BYTES
        socket_end.pause_writing()
        stream_end.data_received(piece)
        socket_end.resume_writing()
    assert transport.high_bytes == WRITE_HIGH_BYTES


def test_no_more_is_read_than_the_stream_has_room_for() -> None:
    stream = FakeStream()
    socket_end, _ = relay_pair(stream)
    stream.room_bytes = 10
    buffer = socket_end.get_buffer(-1)
    assert len(buffer) == 10
    buffer[:3] = b"abc"
    socket_end.buffer_updated(3)
    other, _ = relay_pair(FakeStream())
    other.get_buffer(-1)[:3] = b"xyz"
    assert stream.written == b"abc", "what was read is the stream's own"
    stream.room_bytes = 2**30
    assert len(socket_end.get_buffer(-1)) == READ_BYTES


def test_a_socket_that_is_reset_while_we_end_it_is_no_bug() -> None:
    stream, transport = FakeStream(), FakeTransport()
    socket_end, stream_end = relay_pair(stream)
    socket_end.connection_made(transport)
    transport.eof_error = OSError("not connected")
    stream_end.eof_received()
    transport.closing = True
    stream_end.data_received(b"dropped")
    socket_end.connection_lost(ConnectionResetError("by peer"))
    assert [code for code, _ in stream.resets] == [Code.CANCELLED]


def test_pauses_reach_the_socket_until_it_closes() -> None:
    stream, transport = FakeStream(), FakeTransport()
    socket_end, stream_end = relay_pair(stream)
    stream_end.pause_writing()
    socket_end.connection_made(transport)
    stream_end.pause_writing()
    stream_end.resume_writing()
    transport.closing = True
    stream_end.pause_writing()
    assert transport.calls == ["pause", "resume"]


def test_a_clean_end_closes_after_what_is_buffered() -> None:
    stream, transport, ends = FakeStream(), FakeTransport(), []
    socket_end, stream_end = relay_pair(stream, lambda: ends.append("over"))
    socket_end.connection_made(transport)
    stream_end.stream_closed(None)
    socket_end.connection_lost(None)
    assert (transport.calls, stream.resets, ends) == (["close"], [], ["over"])


@both_loops
async def test_local_sockets_send_at_once_and_keep_little_unsent() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))

    async with through(echo) as pair, connected(pair) as (reader, writer):
        writer.write(b"hello")
        assert await reader.read(100) == b"hello"
        ends = [
            *pair.server.session.streams.values(),
            *pair.agent.session.streams.values(),
        ]
        assert len(ends) == 2
        for stream in ends:
            raw = stream.handler.transport.get_extra_info("socket")
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            unsent = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert unsent == UNSENT_BYTES
        for connection in (pair.server, pair.agent):
            raw = connection._transport.get_extra_info("socket")
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            unsent = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert unsent == TUNNEL_UNSENT_BYTES
