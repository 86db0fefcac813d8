"""A local TCP connection on one side, a stream on the other: bytes go through unread.

Used by the front door (ciphertext of the sealed face), by the raw entry, and by the
agent for raw targets. Backpressure is end to end: a stream that has too much queued
stops the socket's reading; a socket that does not drain takes no credit, so the far
writer stalls. Half-close passes in both directions.

    socket ──buffer_updated─▶ SocketEnd ──write──▶ stream
    socket ◀────write──────── StreamEnd ◀──data_received── stream

Two small objects, because both borders speak the same method names.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Protocol, cast

from shared.errors import Code, StreamReset
from shared.streams import ByteStream
from shared.tunnel.sockets import limit_unsent_bytes

__all__ = ["RelayedStream", "SocketEnd", "StreamEnd", "relay_pair"]

# What may wait in the local socket's transport before the peer gets no more credit. One that is
# stuck from the beginning holds so much beside its window ...
WRITE_FIRST_BYTES = 16 * 1024
# ... and one that has been full and drained again, of so many bytes in all, is worth more: then
# several messages leave by one system call. (The kernel's buffers alone swallow less.)
DRAINED_BYTES = 512 * 1024
WRITE_HIGH_BYTES = 256 * 1024

# The most that is read at once; a stream takes so much without a pause.
READ_BYTES = 250 * 1024

# Where local sockets are read into, one at a time; what was read is copied out at once.
_READ_BUFFER = memoryview(bytearray(READ_BYTES))

# What may lie in the kernel and not be sent yet, for a reader that does not read: a thousand of
# them would cost gigabytes at the kernel's own choice.
UNSENT_BYTES = 64 * 1024

# l_onoff=1, l_linger=0: close() sends RST and throws away what is unsent.
_LINGER_RESET = struct.pack("ii", 1, 0)


class RelayedStream(ByteStream, Protocol):
    """A stream that says how much should be read for it."""

    @property
    def room_bytes(self) -> int:
        """How much may be written now without waiting for long; more than 0."""


class StreamEnd:
    """The stream's handler: passes what it brings to the socket.

    Bytes may come before the socket is connected; they wait uncredited, so the stream's
    window bounds them.
    """

    __slots__ = (
        "_early",
        "_early_eof",
        "_drained_bytes",
        "_early_end",
        "_on_close",
        "_untaken_bytes",
        "socket_is_full",
        "stream",
        "transport",
    )

    def __init__(
        self, stream: RelayedStream, on_close: Callable[[], None] | None
    ) -> None:
        self.stream = stream
        # Set when the socket is connected; None again when it is gone.
        self.transport: asyncio.Transport | None = None
        # Set by the socket's end: the transport holds more than it should.
        self.socket_is_full = False
        # Given to the full transport; credited when it drains.
        self._untaken_bytes = 0
        # Credited so, in all; None once that was enough to trust the reader.
        self._drained_bytes: int | None = 0
        # What came before the socket was there, in order; then its EOF, then its end.
        self._early: list[bytes | memoryview] | None = []
        self._early_eof = False
        self._early_end: list[StreamReset | None] = []
        # Called once, when the stream is over.
        self._on_close = on_close

    def connected(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        early, self._early = self._early or [], None
        for data in early:
            self.data_received(data)
        if self._early_end:
            self.stream_closed(self._early_end[0])
        elif self._early_eof:
            self.eof_received()

    def drained(self) -> None:
        self.socket_is_full = False
        count, self._untaken_bytes = self._untaken_bytes, 0
        if count:
            self.stream.taken(count)
        if self._drained_bytes is not None and self.transport is not None:
            self._drained_bytes += count
            if self._drained_bytes >= DRAINED_BYTES:
                self._drained_bytes = None
                self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def closed(self) -> None:
        """Say once that this relay is over."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    # StreamHandler

    def data_received(self, data: bytes | memoryview) -> None:
        if self.transport is not None:
            if self.transport.is_closing():
                return  # connection_lost is on its way and will reset the stream
            self.transport.write(data)
            if self.socket_is_full:
                self._untaken_bytes += len(data)
            else:
                self.stream.taken(len(data))
        elif self._early is not None:
            self._early.append(data)

    def eof_received(self) -> None:
        if self.transport is None:
            self._early_eof = True
        elif not self.transport.is_closing():
            # The far end may have reset a moment ago: connection_lost tells of that.
            with contextlib.suppress(OSError):
                self.transport.write_eof()

    def stream_closed(self, error: StreamReset | None) -> None:
        transport = self.transport
        if transport is None and self._early is not None:
            self._early_end.append(error)
        elif transport is not None:
            self.transport = None
            if error is None:
                transport.close()
            else:
                _send_reset(transport)
        self.closed()

    def pause_writing(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()


class SocketEnd(asyncio.BufferedProtocol):
    """The socket's protocol: passes what it reads to the stream.

    It reads no more than the stream has room for: a thousand downloads that nobody takes would
    else hold a large read each.
    """

    __slots__ = ("_end",)

    def __init__(self, end: StreamEnd) -> None:
        self._end = end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass, only the same.
        transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=WRITE_FIRST_BYTES)
        # TCP_NODELAY is already set: both loops do that for every connection.
        limit_unsent_bytes(transport, UNSENT_BYTES)
        self._end.connected(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        room_bytes = self._end.stream.room_bytes
        if room_bytes >= READ_BYTES:
            return _READ_BUFFER
        return _READ_BUFFER[:room_bytes]

    def buffer_updated(self, nbytes: int) -> None:
        self._end.stream.write(bytes(_READ_BUFFER[:nbytes]))

    def eof_received(self) -> bool:
        self._end.stream.write_eof()
        return True  # keep our direction open: half-close

    def pause_writing(self) -> None:
        self._end.socket_is_full = True

    def resume_writing(self) -> None:
        self._end.drained()

    def connection_lost(self, error: Exception | None) -> None:
        if self._end.transport is not None:
            # The socket went first. A clean close after both EOFs never comes here.
            self._end.transport = None
            reason = "the connection behind the stream was closed"
            self._end.stream.reset(
                Code.CANCELLED, f"{reason}: {error}" if error else reason
            )
            self._end.closed()


def _send_reset(transport: asyncio.Transport) -> None:
    """End a connection so that its other end cannot take it for a clean close.

    A plain abort sends FIN when nothing is unread, and half a download would look whole.
    """
    raw = transport.get_extra_info("socket")
    if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    transport.abort()


def relay_pair(
    stream: RelayedStream, on_close: Callable[[], None] | None = None
) -> tuple[SocketEnd, StreamEnd]:
    """The two ends of a relay: make the second the stream's handler, the first the
    socket's protocol. `on_close` is called once, when either side is over."""
    end = StreamEnd(stream, on_close)
    return SocketEnd(end), end
