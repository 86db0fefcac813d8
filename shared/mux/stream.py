"""One stream inside a session: its state, its queue, its windows.

Theory of operation. Each direction of a stream ends by itself (EOF), both at once by
RESET. The four states say which directions are still open:

    OPEN ──send EOF──▶ LOCAL_CLOSED ──receive EOF──▶ CLOSED
      └──receive EOF─▶ REMOTE_CLOSED ──send EOF────▶ CLOSED
    any ──RESET, either way──▶ CLOSED

"Send EOF" happens when the frame leaves, after all queued data, not when `write_eof` is
called. What is not in the table is an error: the peer's if it was received, ours if it
was sent. Frames for a stream that is CLOSED here may still be under way from the peer
and are skipped (SPEC 7).
"""

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING

from shared.errors import Code, InvalidState, PeerProtocolError, StreamReset
from shared.mux.windows import ReceiveWindow, SendWindow
from shared.streams import StreamHandler

if TYPE_CHECKING:
    from shared.mux.session import Session

__all__ = [
    "QUEUE_HIGH_BYTES",
    "QUEUE_HIGH_PIECES",
    "QUEUE_LEAST_BYTES",
    "QUEUE_LOW_BYTES",
    "RECEIVING_STATES",
    "SENDING_STATES",
    "Input",
    "State",
    "Stream",
]

# A stream whose queue is longer than this asks its writer to pause, as after any large read of
# a socket (up to 256 KiB with uvloop). With more of them in a row each turn of the loop takes
# milliseconds, for which everybody else waits.
QUEUE_HIGH_BYTES = 64 * 1024

# ... and lets it go on below this, so that the next read comes in while the rest goes out.
QUEUE_LOW_BYTES = 32 * 1024

# A stream without credit pauses its writer at this: one that nobody reads holds so little, a
# thousand of them 16 MiB; and when credit comes this goes out while the next read comes in.
QUEUE_LEAST_BYTES = 16 * 1024

# ... or than this many writes: a piece of one byte costs fifty in memory, so bytes alone
# would not bound what a queue holds.
QUEUE_HIGH_PIECES = 4096


class State(Enum):
    """Which directions of a stream are open."""

    OPEN = auto()
    LOCAL_CLOSED = auto()  # we have sent EOF
    REMOTE_CLOSED = auto()  # we have received EOF
    CLOSED = auto()


class Input(Enum):
    """What moves a stream from state to state."""

    SEND_EOF = auto()
    RECEIVE_EOF = auto()
    RECEIVE_DATA = auto()
    RESET = auto()


_TRANSITIONS: dict[tuple[State, Input], State] = {
    (State.OPEN, Input.SEND_EOF): State.LOCAL_CLOSED,
    (State.OPEN, Input.RECEIVE_EOF): State.REMOTE_CLOSED,
    (State.OPEN, Input.RECEIVE_DATA): State.OPEN,
    (State.OPEN, Input.RESET): State.CLOSED,
    (State.LOCAL_CLOSED, Input.RECEIVE_EOF): State.CLOSED,
    (State.LOCAL_CLOSED, Input.RECEIVE_DATA): State.LOCAL_CLOSED,
    (State.LOCAL_CLOSED, Input.RESET): State.CLOSED,
    (State.REMOTE_CLOSED, Input.SEND_EOF): State.CLOSED,
    (State.REMOTE_CLOSED, Input.RESET): State.CLOSED,
}


RECEIVING_STATES = (State.OPEN, State.LOCAL_CLOSED)
SENDING_STATES = (State.OPEN, State.REMOTE_CLOSED)


class Stream:
    """The near half of a stream; implements `shared.streams.ByteStream`.

    Made by `Session.open_stream`, or by the session when the peer opens one.
    """

    __slots__ = (
        "accepted",
        "eof_queued",
        "handler",
        "id",
        "paused",
        "queue",
        "queued_bytes",
        "ready",
        "receive_window",
        "send_window",
        "session",
        "spent_at",
        "spent_bytes",
        "state",
        "target",
        "turn_left_bytes",
    )

    def __init__(
        self,
        session: "Session",
        stream_id: int,
        target: str,
        receive_window: ReceiveWindow,
        send_window: SendWindow,
    ) -> None:
        self.session = session
        self.id = stream_id
        self.target = target
        self.receive_window = receive_window
        self.send_window = send_window
        self.state = State.OPEN
        # Who is told; set by the opener before it returns to the event loop, or by the
        # session's handler in stream_opened. None again once there is no more to tell.
        self.handler: StreamHandler | None = None
        # Written, not yet handed to a connection.
        self.queue: deque[bytes | memoryview] = deque()
        self.queued_bytes = 0
        # write_eof was called; the EOF frame follows the queue.
        self.eof_queued = False
        # Whether the handler was asked to pause.
        self.paused = False
        # The outbox's: whether the stream stands among the senders; what it has sent lately,
        # as of when; what is left of a turn that a full message has cut short.
        self.ready = False
        self.spent_bytes = 0
        self.spent_at = 0.0
        self.turn_left_bytes = 0
        # ACCEPT was received (of a stream that we opened) or sent (of another).
        self.accepted = False
        session.counters.stream_opened(stream_id)

    def __repr__(self) -> str:
        return f"<Stream {self.id} {self.target} {self.state.name.lower()}>"

    # ByteStream

    def write(self, data: bytes | memoryview) -> None:
        if self.state is State.CLOSED:
            return
        if self.eof_queued:
            raise InvalidState("write after write_eof")
        count = len(data)
        if not count:
            return
        self.queue.append(data)
        self.queued_bytes += count
        if not self.ready:
            self.session.stream_ready(self)
        if not self.paused and (
            (self.queued_bytes >= QUEUE_LEAST_BYTES and self._queue_is_long())
            or len(self.queue) > QUEUE_HIGH_PIECES
        ):
            self.paused = True
            if self.handler is not None:
                self.handler.pause_writing()

    @property
    def room_bytes(self) -> int:
        """How much is worth reading for it now; what is more would only wait."""
        credit_bytes = self.send_window.credit_bytes
        return max(credit_bytes - self.queued_bytes, QUEUE_LEAST_BYTES)

    def _queue_is_long(self) -> bool:
        """Whether there is more than should wait, if that is not little."""
        queued_bytes = self.queued_bytes
        return (
            queued_bytes > QUEUE_HIGH_BYTES
            or queued_bytes >= self.send_window.credit_bytes
        )

    def write_eof(self) -> None:
        if self.state is State.CLOSED or self.eof_queued:
            return
        self.eof_queued = True
        if not self.ready:
            self.session.stream_ready(self)

    def reset(self, code: Code, reason: str) -> None:
        if self.state is not State.CLOSED:
            self.close()
            self.handler = None
            self.session.counters.resets_sent[code] += 1
            self.session.stream_reset(self, code, reason)

    def taken(self, count: int) -> None:
        if self.receive_window.taken(count):
            if self.state in RECEIVING_STATES:
                self.session.window_due(self)
            elif self.state is State.REMOTE_CLOSED:
                self.receive_window.finish()

    # What else the owner may call

    def accept(self) -> None:
        """Tell the opener that the target is reached and the caller known (SPEC 5)."""
        if self.state is not State.CLOSED and not self.accepted:
            self.accepted = True
            self.session.stream_accepted(self)

    @property
    def closed(self) -> bool:
        return self.state is State.CLOSED

    # What the session calls

    def move(self, event: Input) -> None:
        """Change the state by the table.

        Raises:
            PeerProtocolError: For an input that this state does not allow.
        """
        try:
            self.state = _TRANSITIONS[self.state, event]
        except KeyError:
            raise PeerProtocolError(
                f"stream {self.id}: {event.name.lower()} when {self.state.name.lower()}"
            ) from None

    def close(self) -> None:
        """Drop what is queued; the stream is over."""
        self.state = State.CLOSED
        self.queue.clear()
        self.queued_bytes = 0

    def take_queued(self, max_bytes: int, parts: list[bytes | memoryview]) -> int:
        """Move at most `max_bytes` off the queue into `parts`, without joining pieces."""
        queue, left = self.queue, max_bytes
        if self.queued_bytes <= max_bytes:
            # All of it, as nearly always with a small stream.
            parts.extend(queue)
            queue.clear()
            taken, self.queued_bytes = self.queued_bytes, 0
            return taken
        while queue and left > 0:
            first = queue[0]
            count = len(first)
            if count > left:
                view = first if isinstance(first, memoryview) else memoryview(first)
                queue[0] = view[left:]
                parts.append(view[:left])
                left = 0
                break
            queue.popleft()
            parts.append(first)
            left -= count
        taken = max_bytes - left
        self.queued_bytes -= taken
        return taken

    def drained(self) -> None:
        """Let the writer go on if it was paused and the queue is short again."""
        if (
            self.paused
            and self.queued_bytes <= QUEUE_LOW_BYTES
            and (self.queued_bytes < QUEUE_LEAST_BYTES or not self._queue_is_long())
            and len(self.queue) <= QUEUE_HIGH_PIECES // 2
        ):
            self.paused = False
            if self.handler is not None:
                self.handler.resume_writing()

    def lost(self, error: StreamReset | None) -> None:
        """Close and tell the handler, once."""
        if error is not None and self.state is not State.CLOSED:
            self.session.counters.resets_received[error.code] += 1
        self.close()
        handler, self.handler = self.handler, None
        if handler is not None:
            handler.stream_closed(error)
