"""What waits to be sent, and whose turn it is: one session's outgoing side. SPEC 4 and 6.

Three kinds wait, and each message takes them in this order:

    windows due    streams whose reader made room; the frame is made when it leaves, so
                   ten reads make one WINDOW
    control        frames that belong to no stream's order: RESET, ACCEPT, PING, GOAWAY …
    streams        those that have data (or an OPEN, or an EOF) and credit for it

Streams take turns, in two rings. What a stream has sent lately puts it into one: little, and it
is somebody who types, or asks one thing after the other, and goes first; more, and it is
bulk. Nobody has to say which, and nobody gains by saying it. The first ring leaves the other a
part of each message, so that many small streams cannot starve a large one.

In the bulk ring each stream may send `TURN_BYTES` and then waits for the others: a turn that
a full message cuts short goes on in the next one (deficit round robin, with frames that can be
cut at any byte). One that needs less than its turn is no bulk any more.

A message once made has its place for good, because the session may have to send it again. So
messages are made as late as the connection allows, and they are short while several streams
wait. Only one alone fills large ones.
"""

from collections import OrderedDict
from collections.abc import Callable

from shared.mux.stream import SENDING_STATES, Input, Stream
from shared.wire import frames
from shared.wire.frames import DATA_HEADER, FrameType

__all__ = [
    "INTERACTIVE_BYTES",
    "INTERACTIVE_BYTES_PER_SECOND",
    "MAX_TURN_BYTES",
    "MESSAGE_BYTES",
    "TURN_BYTES",
    "Outbox",
]

# One message holds all that is ready, up to this (and the frame that crosses it): one TLS
# run and one system call for many small frames. Measured: larger than 128 KiB is slower.
MESSAGE_BYTES = 128 * 1024

# ... and while more than one stream waits, what leaves in so long: who comes next is behind
# this at most. Never less than LEAST_MESSAGE_BYTES: the headers would be the load.
SHARED_MESSAGE_SECONDS = 0.002
LEAST_MESSAGE_BYTES = 16 * 1024

# What one stream may send before the next one's turn, when others wait. Each turn is a write of
# its own at the other end, so on a fast path turns are longer: what leaves in so long.
TURN_BYTES = 16 * 1024
TURN_SECONDS = 0.001
MAX_TURN_BYTES = 64 * 1024

# A stream is interactive while it has sent less than so many bytes above so many a second:
# screens full of text, single objects of an API. Logs at full speed and lists are bulk.
INTERACTIVE_BYTES = 32 * 1024
INTERACTIVE_BYTES_PER_SECOND = 128 * 1024

# Of each message bulk gets at least this part, however many small streams are busy.
BULK_SHARE = 4

_DATA = int(FrameType.DATA)
_DATA_HEADER_BYTES = DATA_HEADER.size
_pack_data = DATA_HEADER.pack

# PING 0 and its PONG: that comes at once, and an ACK rides in front of it (SPEC 5.10).
_ASK = frames.encode_ping(0)
_ANSWER = frames.encode_pong(0)


class Outbox:
    """Frames and streams that wait for the next message."""

    def __init__(
        self, wake: Callable[[], None], turn_taken: Callable[[Stream], None]
    ) -> None:
        # Called whenever something new may be sent; cheap, and often.
        self.wake = wake
        # Called after a turn with which the stream may have ended or drained.
        self._turn_taken = turn_taken
        self._control: list[bytes] = []
        # The PING to answer; a newer one replaces it, so that a peer which asks without
        # reading cannot make us hoard answers (SPEC 5.7).
        self._pong_due: int | None = None
        # ... but for PING 0, which asks for an ACK only: it must not hide one that is waited for.
        self._answer_due = False
        # Whether round trips cost next to nothing, for windows; true until one was measured.
        self.is_short_path = True
        # Streams whose WINDOW is due, oldest first; the values mean nothing.
        self._windows_due: OrderedDict[Stream, None] = OrderedDict()
        # Streams that may send, next one first. Ordered dicts, because a reset stream
        # must leave from the middle without a search.
        self._interactive: OrderedDict[Stream, None] = OrderedDict()
        self._bulk: OrderedDict[Stream, None] = OrderedDict()
        # When the last message was made: what streams have spent fades with time.
        self._now = 0.0
        # Largest messages of one stream alone, and while several wait; the turns in those.
        self._alone_bytes = self._shared_bytes = MESSAGE_BYTES
        self._turn_bytes = TURN_BYTES
        # What streams have sent while they were bulk, until somebody counts it.
        self.bulk_bytes = 0
        # OPEN frames of streams that have not had their first turn.
        self._unannounced: dict[Stream, bytes] = {}

    def __bool__(self) -> bool:
        """Whether anything can be sent now."""
        return bool(
            self._interactive
            or self._bulk
            or self._control
            or self._windows_due
            or self._pong_due is not None
            or self._answer_due
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
        if opaque:
            self._pong_due = opaque
        else:
            self._answer_due = True
        self.wake()

    def window_due(self, stream: Stream) -> None:
        self._windows_due[stream] = None
        self.wake()

    def announce(self, stream: Stream, open_frame: bytes) -> None:
        """Send OPEN with the stream's first turn, together with what it has by then."""
        self._unannounced[stream] = open_frame
        self.stream_ready(stream)

    def stream_ready(self, stream: Stream) -> None:
        """Give a stream a place among the senders, if it has anything that may go."""
        if not stream.ready and self._may_send(stream):
            self._line_up(stream)
            self.wake()

    def forget(self, stream: Stream) -> bool:
        """Drop all that waits of a stream; False if the peer has never heard of it."""
        self._windows_due.pop(stream, None)
        if stream.ready:
            self._leave(stream)
        return self._unannounced.pop(stream, None) is None

    def clear(self) -> None:
        self._control.clear()
        self._windows_due.clear()
        self._interactive.clear()
        self._bulk.clear()
        self._unannounced.clear()
        self._pong_due = None
        self._answer_due = False

    # Sending

    @property
    def has_urgent(self) -> bool:
        """Whether anything waits that must go out even while data may not."""
        return bool(
            self._control
            or self._windows_due
            or self._pong_due is not None
            or self._answer_due
        )

    @property
    def has_data(self) -> bool:
        """Whether any stream has something that may go."""
        return bool(self._interactive or self._bulk)

    def fit(self, limit_bytes: int, rate: float) -> None:
        """Make messages and turns that suit the path.

        Args:
            limit_bytes: How much of the session may be under way.
            rate: Bytes a second, 0 while that is not known.
        """
        part = max(limit_bytes // 8, LEAST_MESSAGE_BYTES)
        self._alone_bytes = min(part, MESSAGE_BYTES)
        shared = max(int(rate * SHARED_MESSAGE_SECONDS), LEAST_MESSAGE_BYTES)
        self._shared_bytes = min(shared, self._alone_bytes)
        self._turn_bytes = min(
            max(int(rate * TURN_SECONDS), TURN_BYTES), MAX_TURN_BYTES
        )

    def next_message(
        self,
        now: float,
        round_trip_seconds: float,
        *,
        ack: int | None = None,
        asks: bool = False,
        data_bytes: int = MESSAGE_BYTES,
    ) -> bytes:
        """The next message, empty when nothing waits.

        `ack` rides in front if anything goes out, and so does a PING that asks for the peer's.
        Without `data_bytes` streams stay where they are.
        """
        self._now = now
        parts: list[bytes | memoryview] = []
        if ack is not None:
            parts.append(frames.encode_ack(ack))
        if asks:
            parts.append(_ASK)
        room = self._take_windows(parts, now, round_trip_seconds)
        if self._pong_due is not None:
            parts.append(frames.encode_pong(self._pong_due))
            self._pong_due = None
        if self._answer_due:
            self._answer_due = False
            parts.append(_ANSWER)
        if self._control:
            room = self._take_control(parts, room)
        if data_bytes > 0 and room > 0 and (self._interactive or self._bulk):
            self._take_data(min(room, data_bytes), parts)
        return b"".join(parts)

    def _take_control(self, parts: list[bytes | memoryview], room: int) -> int:
        """Put control frames while there is room; return what is left of it."""
        count = 0
        for frame in self._control:
            if room <= 0:
                break
            count += 1
            room -= len(frame)
        parts += self._control[:count]
        del self._control[:count]
        return room

    def _take_data(self, room: int, parts: list[bytes | memoryview]) -> None:
        """Put turns of streams, the interactive ones first."""
        interactive, bulk = self._interactive, self._bulk
        if len(bulk) + len(interactive) == 1:
            # Alone. It may be interactive still, but its data need not wait for its name.
            room = min(room, self._alone_bytes)
            stream = next(iter(bulk or interactive))
            self._leave(stream)
            self._take_turn(stream, room, parts)
            return
        room = min(room, self._shared_bytes)
        kept = room // BULK_SHARE if bulk else 0
        room -= self._take_interactive(room, kept, parts)
        while bulk and room > 0:
            room -= self._take_bulk_turn(next(iter(bulk)), room, parts)
        self._take_interactive(room, 0, parts)

    def _take_interactive(
        self, room: int, kept: int, parts: list[bytes | memoryview]
    ) -> int:
        """Turns of interactive streams until only `kept` is left; what they used."""
        interactive, left = self._interactive, room
        while interactive and left > kept:
            stream, _ = interactive.popitem(last=False)
            stream.ready = False
            turn = left if left < TURN_BYTES else TURN_BYTES
            left -= self._take_turn(stream, turn, parts)
        return room - left

    def _take_bulk_turn(
        self, stream: Stream, room: int, parts: list[bytes | memoryview]
    ) -> int:
        """A turn in the bulk ring, or as much of it as the message has room for."""
        left = stream.turn_left_bytes or self._turn_bytes
        self._leave(stream)
        used = self._take_turn(stream, min(room, left), parts)
        left -= used
        if not stream.ready:
            # It needed less than a turn: it does not make others wait.
            stream.spent_bytes = min(stream.spent_bytes, INTERACTIVE_BYTES // 2)
        elif left > 0 and used >= room and stream in self._bulk:
            stream.turn_left_bytes = left
            self._bulk.move_to_end(stream, last=False)
        return used

    def _take_windows(
        self, parts: list[bytes | memoryview], now: float, round_trip_seconds: float
    ) -> int:
        """Put the windows that are due; return the room that is left in the message."""
        room = MESSAGE_BYTES
        while self._windows_due and room > 0:
            stream, _ = self._windows_due.popitem(last=False)
            window = stream.receive_window
            before = window.limit_offset
            limit = window.advance(
                now, round_trip_seconds, is_short_path=self.is_short_path
            )
            if limit > before:  # else SPEC 5.6 forbids it
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
        window, queue = stream.send_window, stream.queue
        if queue:
            most = min(turn_bytes, window.limit_offset - window.sent_offset)
            if most > 0:
                header_at = len(parts)
                parts.append(b"")  # its header, once the length is known
                count = stream.take_queued(most, parts)
                parts[header_at] = _pack_data(
                    _DATA, stream.id, count + 8, window.sent_offset
                )
                window.sent_offset += count
                used += count + _DATA_HEADER_BYTES
                self._spend(stream, count)
        if queue or stream.eof_queued:
            if stream.eof_queued and not queue and stream.state in SENDING_STATES:
                parts.append(frames.encode_eof(stream.id, window.sent_offset))
                used += _DATA_HEADER_BYTES
                stream.move(Input.SEND_EOF)
            elif self._may_send(stream):
                self._line_up(stream)
        if stream.paused or stream.eof_queued:
            self._turn_taken(stream)
        return used

    # Places

    def _spend(self, stream: Stream, count: int) -> None:
        faded = int((self._now - stream.spent_at) * INTERACTIVE_BYTES_PER_SECOND)
        spent_bytes = stream.spent_bytes - faded if faded < stream.spent_bytes else 0
        if spent_bytes > INTERACTIVE_BYTES:
            self.bulk_bytes += count
        stream.spent_bytes = spent_bytes + count
        stream.spent_at = self._now

    def _line_up(self, stream: Stream) -> None:
        stream.ready = True
        if stream.spent_bytes > INTERACTIVE_BYTES:
            self._spend(stream, 0)
        if stream.spent_bytes > INTERACTIVE_BYTES:
            self._bulk[stream] = None
        else:
            self._interactive[stream] = None

    def _leave(self, stream: Stream) -> None:
        stream.ready = False
        stream.turn_left_bytes = 0
        if stream in self._bulk:
            del self._bulk[stream]
        else:
            self._interactive.pop(stream, None)

    def _may_send(self, stream: Stream) -> bool:
        if stream.queue:
            window = stream.send_window
            return (
                window.limit_offset > window.sent_offset or stream in self._unannounced
            )
        return (
            stream.eof_queued and stream.state in SENDING_STATES
        ) or stream in self._unannounced
