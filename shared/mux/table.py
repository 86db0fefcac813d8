"""Which streams of a session are open, which numbers have been used, and how streams end.

A stream ends by both EOFs, by RESET, by a bug in its handler, or with the session. In each
case it leaves the table first and its handler is told after that, once, whatever the
handler then does: it may open, write and reset.
"""

from collections.abc import Callable

from shared.errors import Code, StreamReset
from shared.mux.handler import Role
from shared.mux.stream import Stream

__all__ = ["MAX_STREAMS", "StreamTable"]

# Per session and direction. Ten times the busiest member we know of (watches and port
# forwards of a fleet tool); an idle stream costs about 1 KiB.
MAX_STREAMS = 10_000

_LAST_STREAM_ID = 2**32 - 1


class StreamTable:
    """The streams of one session."""

    def __init__(
        self,
        role: Role,
        drop: Callable[[Stream], bool],
        stream_failed: Callable[[Stream, Exception], None],
    ) -> None:
        self._parity = role.value % 2
        # Takes a stream from what waits to be sent; False if the peer has not heard of it.
        self._drop = drop
        # Told when a handler raises.
        self._stream_failed = stream_failed
        # Live streams by id. Closed ones leave at once.
        self.live: dict[int, Stream] = {}
        # The next id that we open; the peer's ids must rise.
        self.next_id = role.value
        self.last_peer_id = 0
        self.peer_count = 0

    # Beginnings

    def new_id(self) -> int:
        """The number of the next stream of ours; `add_own` follows.

        Raises:
            StreamReset: When there are too many, or have been.
        """
        if self.next_id > _LAST_STREAM_ID:
            raise StreamReset(Code.GOING_AWAY, "the tunnel takes no new streams")
        if len(self.live) - self.peer_count >= MAX_STREAMS:
            raise StreamReset(Code.LIMIT, f"{MAX_STREAMS} streams are open already")
        return self.next_id

    def add_own(self, stream: Stream) -> None:
        """A stream with our `new_id`."""
        self.next_id += 2
        self.live[stream.id] = stream

    def add_peers(self, stream: Stream) -> None:
        """A stream with a number that `may_be_opened`."""
        self.last_peer_id = stream.id
        self.live[stream.id] = stream
        self.peer_count += 1

    @property
    def peer_has_too_many(self) -> bool:
        return self.peer_count > MAX_STREAMS

    def may_be_opened(self, stream_id: int) -> bool:
        """Whether the peer may open a stream with this number (SPEC 5.2)."""
        return not self.is_own(stream_id) and stream_id > self.last_peer_id

    def is_own(self, stream_id: int) -> bool:
        return stream_id % 2 == self._parity

    def was_open(self, stream_id: int) -> bool:
        """Whether the number of a stream that is not live belongs to one that was."""
        if self.is_own(stream_id):
            return 0 < stream_id < self.next_id
        return 0 < stream_id <= self.last_peer_id

    # Ends

    def turn_taken(self, stream: Stream) -> None:
        """A stream has sent something: it may be over, or its writer may go on."""
        if stream.closed:
            self.end(stream)
        elif stream.paused:
            self.tell(stream, stream.drained)

    def tell(self, stream: Stream, call: Callable[[], None]) -> None:
        """Call a stream's owner; if that raises the stream ends, and nothing else."""
        try:
            call()
        except Exception as error:
            self.fail(stream, error)

    def end(self, stream: Stream) -> None:
        """Both directions have ended."""
        self.forget(stream)
        self.lose(stream, None)

    def end_all(self, code: Code, reason: str) -> None:
        """The session is over."""
        streams = list(self.live.values())
        self.live.clear()
        self.peer_count = 0
        for stream in streams:
            stream.receive_window.close()
            self.lose(stream, StreamReset(code, reason))

    def lose(self, stream: Stream, error: StreamReset | None) -> None:
        """Tell the handler of a stream that has left."""
        try:
            stream.lost(error)
        except Exception as bug:
            self._stream_failed(stream, bug)

    def fail(self, stream: Stream, bug: Exception) -> None:
        """A handler raised: end its stream, and only that."""
        # Rule 29: a stream's error never ends the session, not even when it is our bug.
        handler, stream.handler = stream.handler, None
        error = StreamReset(Code.INTERNAL, "internal error, see the other side's log")
        stream.reset(error.code, error.reason)
        self._stream_failed(stream, bug)
        stream.handler = handler
        self.lose(stream, error)

    def forget(self, stream: Stream) -> bool:
        """Drop a closed stream; True if the peer knows it and is still to be told."""
        if self.live.pop(stream.id, None) is None:
            return False
        if not self.is_own(stream.id):
            self.peer_count -= 1
        stream.receive_window.close()
        return self._drop(stream)
