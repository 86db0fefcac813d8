"""Fakes of `ByteStream`: one that records, a linked pair, and one over a real TCP socket."""

import asyncio
from collections.abc import Callable
from typing import cast

from shared.errors import Code, StreamReset
from shared.streams import StreamHandler

__all__ = ["FakeStream", "LinkedStream", "SocketStream", "linked_pair"]


class FakeStream:
    """A ByteStream that remembers what its handler did with it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.has_eof = False
        self.reset_with: tuple[Code, str] | None = None
        self.taken_bytes = 0

    @property
    def output(self) -> bytes:
        return b"".join(self.written)

    @property
    def is_over(self) -> bool:
        return self.has_eof or self.reset_with is not None

    def write(self, data: bytes | memoryview) -> None:
        assert data, "an empty write is a wasted frame"
        if not self.is_over:
            self.written.append(bytes(data))

    def write_eof(self) -> None:
        self.has_eof = True

    def reset(self, code: Code, reason: str) -> None:
        assert reason, "a reset must say why"
        if self.reset_with is None:
            self.reset_with = (code, reason)

    def taken(self, count: int) -> None:
        assert count > 0
        self.taken_bytes += count


class LinkedStream:
    """One end of a pair: what is written here is delivered there by `deliver`.

    It keeps the rules of the interface: at most `window` bytes are delivered and not
    taken, `stream_closed(None)` comes after both directions ended, nothing comes after a
    reset, and taking more than was delivered is an error.
    """

    def __init__(self, window: int) -> None:
        self.handler: StreamHandler | None = None
        self.peer: LinkedStream
        self.window = window
        # Written here, not delivered there.
        self.outgoing = bytearray()
        self.eof_written = False
        self.eof_delivered = False
        # Delivered here, not taken here.
        self.untaken = 0
        self.max_untaken = 0
        self.reset_with: tuple[Code, str] | None = None
        self.is_closed = False

    def write(self, data: bytes | memoryview) -> None:
        assert not self.eof_written or self.is_closed, "write after write_eof"
        if not self.is_closed:
            self.outgoing += data

    def write_eof(self) -> None:
        self.eof_written = True

    def reset(self, code: Code, reason: str) -> None:
        if self.is_closed:
            return
        self.reset_with = (code, reason)
        self.is_closed = True
        if not self.peer.is_closed:
            self.peer.is_closed = True
            if self.peer.handler is not None:
                self.peer.handler.stream_closed(StreamReset(code, reason))

    def taken(self, count: int) -> None:
        self.untaken -= count
        assert self.untaken >= 0, "took more than was delivered"

    def deliver(self, limit: int | None = None) -> bool:
        """Move up to `limit` bytes to the peer, then EOF; True if anything happened."""
        peer = self.peer
        if self.is_closed or peer.is_closed or peer.handler is None:
            return False
        room = peer.window - peer.untaken
        count = min(len(self.outgoing), room, limit or room)
        if count > 0:
            data = bytes(self.outgoing[:count])
            del self.outgoing[:count]
            peer.untaken += count
            peer.max_untaken = max(peer.max_untaken, peer.untaken)
            peer.handler.data_received(data)
            return True
        if self.eof_written and not self.eof_delivered and not self.outgoing:
            self.eof_delivered = True
            peer.handler.eof_received()
            for end in (self, peer):
                both = self.eof_delivered and peer.eof_delivered
                if both and not end.is_closed:
                    end.is_closed = True
                    end.handler.stream_closed(None)  # type: ignore[union-attr]
            return True
        return False


def linked_pair(window: int = 256 * 1024) -> tuple[LinkedStream, LinkedStream]:
    near, far = LinkedStream(window), LinkedStream(window)
    near.peer, far.peer = far, near
    return near, far


class SocketStream(asyncio.Protocol):
    """A ByteStream over a TCP connection: the far end may be any real client.

    `make_handler(stream)` is called when the connection is there.
    """

    def __init__(self, make_handler: Callable[["SocketStream"], StreamHandler]) -> None:
        self._make_handler = make_handler
        self.transport: asyncio.Transport | None = None
        self.handler: StreamHandler | None = None
        self.untaken = 0
        self.max_untaken = 0
        self.window = 256 * 1024
        self.eof_written = False
        self.eof_was_received = False
        self.reset_with: tuple[Code, str] | None = None

    # ByteStream

    def write(self, data: bytes | memoryview) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def write_eof(self) -> None:
        if self.transport is not None and not self.eof_written:
            self.eof_written = True
            if self.eof_was_received:
                self.transport.close()
            else:
                self.transport.write_eof()

    def reset(self, code: Code, reason: str) -> None:
        self.reset_with = self.reset_with or (code, reason)
        self.handler = None
        if self.transport is not None:
            self.transport.abort()

    def taken(self, count: int) -> None:
        self.untaken -= count
        assert self.untaken >= 0, "took more than was delivered"
        if self.transport is not None and self.untaken < self.window:
            self.transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.handler = self._make_handler(self)

    def data_received(self, data: bytes) -> None:
        self.untaken += len(data)
        self.max_untaken = max(self.max_untaken, self.untaken)
        if self.untaken >= self.window and self.transport is not None:
            self.transport.pause_reading()
        if self.handler is not None:
            self.handler.data_received(data)

    def eof_received(self) -> bool:
        self.eof_was_received = True
        if self.handler is not None:
            self.handler.eof_received()
        return not self.eof_written

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        handler, self.handler = self.handler, None
        if handler is not None:
            handler.stream_closed(
                None
                if error is None
                else StreamReset(Code.CANCELLED, "the TCP connection was lost")
            )

    def pause_writing(self) -> None:
        if self.handler is not None:
            self.handler.pause_writing()

    def resume_writing(self) -> None:
        if self.handler is not None:
            self.handler.resume_writing()
