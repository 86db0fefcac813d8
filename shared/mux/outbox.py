"""What waits to be sent, and whose turn it is: one session's outgoing side. SPEC 4 and 6.

Three kinds wait, and each message takes them in this order:

    windows due    streams whose reader made room; the frame is made when it leaves, so
                   ten reads make one WINDOW
    control        frames that belong to no stream's order: RESET, ACCEPT, PING, GOAWAY …
    ring           streams that have data (or an OPEN, or an EOF) and credit for it

Streams in the ring take turns of `TURN_BYTES`. So a full link delays a small stream by
one turn of each other stream, not by all that they have queued. Each turn makes at most
one DATA frame, however many small writes it gathers.
"""

from collections import OrderedDict, deque
from collections.abc import Callable

from shared.mux.stream import SENDING_STATES, Input, Stream
from shared.wire import frames
from shared.wire.frames import DATA_HEADER, FrameType

__all__ = ["MESSAGE_BYTES", "TURN_BYTES", "Outbox"]

# One message holds all that is ready, up to this (and the frame that crosses it): one TLS
# run and one system call for many small frames. Measured: larger than 128 KiB is slower.
MESSAGE_BYTES = 128 * 1024

# What one stream may send before the next one's turn, when others wait.
TURN_BYTES = 16 * 1024

_DATA = int(FrameType.DATA)


class Outbox:
    """Frames and streams that wait for the next message."""

    def __init__(
        self, wake: Callable[[], None], turn_taken: Callable[[Stream], None]
    ) -> None:
        # Called whenever something new may be sent; cheap, and often.
        self.wake = wake
        # Called after each turn: the stream may have ended or drained.
        self._turn_taken = turn_taken
        self._control: deque[bytes] = deque()
        # The PING to answer; a newer one replaces it, so that a peer which asks without
        # reading cannot make us hoard answers (SPEC 5.7).
        self._pong_due: int | None = None
        # Streams whose WINDOW is due, oldest first; the values mean nothing.
        self._windows_due: OrderedDict[Stream, None] = OrderedDict()
        # Streams that may send, next one first. Ordered dicts, because a reset stream
        # must leave from the middle without a search.
        self._ring: OrderedDict[Stream, None] = OrderedDict()
        # OPEN frames of streams that have not had their first turn.
        self._unannounced: dict[Stream, bytes] = {}

    def __bool__(self) -> bool:
        """Whether anything can be sent now."""
        return bool(
            self._ring
            or self._control
            or self._windows_due
            or self._pong_due is not None
        )

    @property
    def control_frames(self) -> int:
        """How many frames wait that no window bounds."""
        return len(self._control)

    # What to send

    def control(self, frame: bytes) -> None:
        self._control.append(frame)
        self.wake()

    def pong(self, opaque: int) -> None:
        self._pong_due = opaque
        self.wake()

    def window_due(self, stream: Stream) -> None:
        self._windows_due[stream] = None
        self.wake()

    def announce(self, stream: Stream, open_frame: bytes) -> None:
        """Send OPEN with the stream's first turn, together with what it has by then."""
        self._unannounced[stream] = open_frame
        self.stream_ready(stream)

    def stream_ready(self, stream: Stream) -> None:
        """Give a stream a place in the ring, if it has anything that may go."""
        if not stream.ready and self._may_send(stream):
            stream.ready = True
            self._ring[stream] = None
            self.wake()

    def forget(self, stream: Stream) -> bool:
        """Drop all that waits of a stream; False if the peer has never heard of it."""
        self._windows_due.pop(stream, None)
        if stream.ready:
            stream.ready = False
            self._ring.pop(stream, None)
        return self._unannounced.pop(stream, None) is None

    def clear(self) -> None:
        self._control.clear()
        self._windows_due.clear()
        self._ring.clear()
        self._unannounced.clear()
        self._pong_due = None

    # Sending

    @property
    def has_urgent(self) -> bool:
        """Whether anything waits that must go out even while data may not."""
        return bool(self._control or self._windows_due or self._pong_due is not None)

    def next_message(
        self,
        now: float,
        round_trip_seconds: float,
        *,
        ack: int | None = None,
        with_data: bool = True,
    ) -> bytes:
        """The next message, empty when nothing waits.

        `ack` rides in front if anything goes out; without data, streams stay in the ring.
        """
        parts: list[bytes | memoryview] = []
        if ack is not None:
            parts.append(frames.encode_ack(ack))
        room = self._take_windows(parts, now, round_trip_seconds)
        if self._pong_due is not None:
            parts.append(frames.encode_pong(self._pong_due))
            self._pong_due = None
        while self._control and room > 0:
            frame = self._control.popleft()
            parts.append(frame)
            room -= len(frame)
        ring = self._ring
        while with_data and ring and room > 0:
            stream, _ = ring.popitem(last=False)
            stream.ready = False
            turn = min(room, TURN_BYTES) if ring else room
            room -= self._take_turn(stream, turn, parts)
        return b"".join(parts)

    def _take_windows(
        self, parts: list[bytes | memoryview], now: float, round_trip_seconds: float
    ) -> int:
        """Put the windows that are due; return the room that is left in the message."""
        room = MESSAGE_BYTES
        while self._windows_due and room > 0:
            stream, _ = self._windows_due.popitem(last=False)
            window = stream.receive_window
            limit = window.advance(now, round_trip_seconds)
            frame = frames.encode_window(stream.id, window.received_offset, limit)
            parts.append(frame)
            room -= len(frame)
        return room

    def _take_turn(
        self, stream: Stream, turn_bytes: int, parts: list[bytes | memoryview]
    ) -> int:
        """Put up to `turn_bytes` of a stream's data, then let it queue up again."""
        used = 0
        if self._unannounced and (frame := self._unannounced.pop(stream, None)):
            parts.append(frame)
            used = len(frame)
        window = stream.send_window
        most = min(turn_bytes, window.credit_bytes)
        if stream.queue and most > 0:
            header_at = len(parts)
            parts.append(b"")  # its header, once the length is known
            count = stream.take_queued(most, parts)
            parts[header_at] = DATA_HEADER.pack(
                _DATA, stream.id, count + 8, window.sent_offset
            )
            window.sent_offset += count
            used += count + DATA_HEADER.size
        if stream.eof_queued and not stream.queue and stream.state in SENDING_STATES:
            parts.append(frames.encode_eof(stream.id, window.sent_offset))
            used += DATA_HEADER.size
            stream.move(Input.SEND_EOF)
        elif self._may_send(stream):
            stream.ready = True
            self._ring[stream] = None
        self._turn_taken(stream)
        return used

    def _may_send(self, stream: Stream) -> bool:
        if stream.queue:
            return stream.send_window.credit_bytes > 0 or stream in self._unannounced
        return (
            stream.eof_queued and stream.state in SENDING_STATES
        ) or stream in self._unannounced
