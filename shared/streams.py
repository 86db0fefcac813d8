"""The two halves of every byte stream in Tower: what one writes to, and what one is told.

A tunnel's stream, the TLS end on top of it and the HTTP relay on top of that all meet
here, so that each can be tested against a fake of these eight methods. The shape is
asyncio's Transport and Protocol, with one thing more: credit is explicit. Bytes that
`data_received` hands over stay charged to the peer's window until `taken` is called, so
a handler that cannot pass them on simply does not call it, and the far writer stalls.

Everything is synchronous and called from the event loop's thread. No method blocks, and
none raises for what the peer did: that comes as `stream_closed`.
"""

from typing import Protocol, runtime_checkable

from shared.errors import Code, StreamReset

__all__ = ["ByteStream", "StreamHandler", "WindsDown", "wind_down"]


class ByteStream(Protocol):
    """What a handler writes to: the near half of a stream."""

    def write(self, data: bytes | memoryview) -> None:
        """Queue data for the peer, in order; never blocks.

        Honour `pause_writing`: what is written after it is still taken, but the
        promise of bounded memory is then the caller's. `data` must not change
        afterwards. Ignored when the stream is closed.
        """

    def write_eof(self) -> None:
        """Close our direction after what is queued. The other stays open. Idempotent."""

    def reset(self, code: Code, reason: str) -> None:
        """End both directions now, telling the peer why (one sentence, no secrets).

        `stream_closed` is not called back for one's own reset. Idempotent.
        """

    def taken(self, count: int) -> None:
        """Say that `count` bytes of what `data_received` brought have been passed on.

        This, and nothing else, lets the peer send more.
        """


class StreamHandler(Protocol):
    """What a stream tells its owner: the far half's doings."""

    def data_received(self, data: bytes | memoryview) -> None:
        """The peer's next bytes. Answer with `taken` when they have been passed on."""

    def eof_received(self) -> None:
        """The peer will send no more. Our direction stays open until we close it."""

    def stream_closed(self, error: StreamReset | None) -> None:
        """The stream is over: None after both directions ended, else why it broke.

        Called exactly once (unless one's own `reset` ended it); nothing follows it.
        """

    def pause_writing(self) -> None:
        """Too much is queued: stop writing until `resume_writing`."""

    def resume_writing(self) -> None:
        """The queue has drained."""


@runtime_checkable
class WindsDown(Protocol):
    """A handler that can end its stream between two pieces of work, without harm.

    Others have one piece of work (a download, a watch) and end when that does.
    """

    def wind_down(self) -> None:
        """The tunnel below is to end: leave it as soon as nothing is interrupted.

        Called again and again until the stream is over.
        """


def wind_down(handler: object) -> None:
    """Tell a handler, if it is of that kind."""
    if isinstance(handler, WindsDown):
        handler.wind_down()
