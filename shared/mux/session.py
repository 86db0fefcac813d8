"""The session: many streams over one ordered, reliable carrier of messages.

Messages, calls and a time come in; handler calls and messages go out. Nothing here
touches a socket or reads a clock. The shell feeds `receive_message`, asks
`data_to_send` for the next message whenever its transport has room, and calls
`handle_timer` at `next_timer`. Both ends are this class; `Role` only decides who uses odd
stream numbers.

Output is pulled, not pushed: data waits in its stream's queue until the transport has
room (see `shared.mux.outbox`), so memory is bounded: writers are paused. SPEC 5 to 8.

Handlers are called in the middle of all this and may call anything back: write, reset,
open, close. So state is settled before a handler is told, and looked at again after.
"""

from dataclasses import replace
from enum import Enum
from typing import Protocol

from shared.errors import Code, InvalidState, PeerProtocolError, StreamReset
from shared.mux.liveness import DEAD_AFTER_SECONDS, Liveness
from shared.mux.outbox import MESSAGE_BYTES, Outbox
from shared.mux.stream import RECEIVING_STATES, Input, Stream
from shared.mux.windows import INITIAL_WINDOW_BYTES, ReceiveWindow, SendWindow
from shared.wire import frames
from shared.wire.frames import FrameType
from shared.wire.hello import Hello, parse_hello

__all__ = ["MAX_STREAMS", "MESSAGE_BYTES", "Role", "Session", "SessionHandler"]

# Data below this is copied out of its message, and so is data that fills less than half
# of it: what a handler keeps then keeps at most twice its own size alive.
COPY_BELOW_BYTES = 8 * 1024

# Per session and direction. Ten times the busiest member we know of (watches and port
# forwards of a fleet tool); an idle stream costs about 1 KiB.
MAX_STREAMS = 10_000

# Answers (RESET, ACCEPT) that may wait for a peer that asks and does not read: each of
# its streams and each of ours twice over, about 100 bytes each.
MAX_WAITING_ANSWERS = 4 * MAX_STREAMS

_LAST_STREAM_ID = 2**32 - 1
_DATA = int(FrameType.DATA)
# What may still be under way to a stream that we have closed.
_STREAM_TYPES = (FrameType.EOF, FrameType.RESET, FrameType.WINDOW, FrameType.ACCEPT)


class Role(Enum):
    """Which end of the session this is."""

    AGENT = 1  # opens streams 1, 3, 5, …
    SERVER = 2  # opens streams 2, 4, 6, …


class SessionHandler(Protocol):
    """Who is told what happens to the session as a whole."""

    def session_ready(self, hello: Hello) -> None:
        """The peer's HELLO is here: streams may be opened."""

    def stream_opened(self, stream: Stream) -> None:
        """The peer opened a stream: set its `handler`, or `reset` it, before returning."""

    def stream_accepted(self, stream: Stream) -> None:
        """The peer reached the target of a stream that we opened."""

    def going_away(self, notice: frames.GoAway) -> None:
        """The peer takes no new streams; those that run may finish."""

    def stream_failed(self, stream: Stream, error: Exception) -> None:
        """Code told of a stream raised: a bug. The stream is reset, the session goes on."""

    def output_ready(self) -> None:
        """There may be something to send: ask `data_to_send` soon. Called often."""


class Session:
    """A session's streams and everything that goes between its two ends."""

    def __init__(
        self, role: Role, hello: Hello, handler: SessionHandler, now: float
    ) -> None:
        self.role = role
        self.handler = handler
        # Ours. The server's repeats the agent's session id once that is known.
        self.hello = hello
        # The peer's; None until it arrives, and no stream may be opened before.
        self.peer: Hello | None = None
        self.liveness = Liveness(now)
        # Live streams by id. Closed ones leave at once.
        self.streams: dict[int, Stream] = {}
        # The next id that we open; the peer's ids must rise.
        self._next_id = role.value
        self._last_peer_id = 0
        self._peer_streams = 0
        # What waits to be sent.
        self._outbox = Outbox(handler.output_ready, self._turn_taken)
        # Set by go_away: we refuse new streams. Set by GOAWAY: the peer does.
        self.draining = False
        self.peer_draining = False
        # Once closed nothing comes in or out.
        self.closed = False
        # Time of the last input, so that calls from handlers need no clock.
        self._now = now
        # SPEC 3: the agent speaks first, so that the server's HELLO can answer it.
        if role is Role.AGENT:
            self._outbox.control_first(frames.encode_hello(hello.encode()))

    # What the shell calls

    def receive_message(self, message: bytes, now: float) -> None:
        """Take in one message from the peer.

        Raises:
            PeerProtocolError: The peer broke SPEC. The caller closes the connection;
                streams are told by `close`.
        """
        self._now = now
        streams = self.streams
        for type_, stream_id, start, end in frames.split(message):
            if self.closed:
                return
            if type_ == _DATA and self.peer is not None:
                stream = streams.get(stream_id)
                if stream is not None:
                    self._receive_data(stream, message, start, end)
                elif not self._was_open(stream_id):
                    raise PeerProtocolError(f"data for unopened stream {stream_id}")
            else:
                self._receive_other(type_, stream_id, message[start:end])
        if self._outbox.control_frames > MAX_WAITING_ANSWERS:
            raise PeerProtocolError("too many frames that need answers, none read")

    def data_to_send(self, now: float) -> bytes:
        """The next message for the peer, empty when there is nothing to send."""
        self._now = now
        if not self.wants_to_send:
            return b""
        self.liveness.sent(now)
        round_trip = self.liveness.round_trip_seconds or 0.0
        return self._outbox.next_message(now, round_trip)

    @property
    def wants_to_send(self) -> bool:
        if self.closed or (self.peer is None and self.role is Role.SERVER):
            return False  # SPEC 3: the server is silent until it has read HELLO
        return bool(self._outbox)

    def next_timer(self) -> float:
        """When `handle_timer` wants to be called."""
        if self.peer is None:
            return self.liveness.received_at + DEAD_AFTER_SECONDS
        return self.liveness.next_timer()

    def handle_timer(self, now: float) -> bool:
        """Do what time demands; False when the peer is dead and the caller must close."""
        self._now = now
        if self.liveness.is_dead(now):
            return False
        if self.peer is not None and self.liveness.ping_is_due(now):
            self._outbox.control(frames.encode_ping(self.liveness.ping(now)))
        return True

    def open_stream(self, target: str) -> Stream:
        """Open a stream; what is written now travels in the same flight as its OPEN.

        The caller sets `handler` before it returns to the event loop.

        Raises:
            StreamReset: When the session cannot take another stream: it ended, drains,
                or has too many.
            ValueError: For a target that SPEC 5.2 does not allow.
        """
        if self.closed:
            raise StreamReset(Code.SESSION_LOST, "the tunnel is closed")
        if self.peer is None:
            raise InvalidState("open_stream before session_ready")
        if self.draining or self.peer_draining or self._next_id > _LAST_STREAM_ID:
            raise StreamReset(Code.GOING_AWAY, "the tunnel takes no new streams")
        if len(self.streams) - self._peer_streams >= MAX_STREAMS:
            raise StreamReset(Code.LIMIT, f"{MAX_STREAMS} streams are open already")
        open_frame = frames.encode_open(self._next_id, INITIAL_WINDOW_BYTES, target)
        stream = Stream(
            self,
            self._next_id,
            target,
            ReceiveWindow(INITIAL_WINDOW_BYTES, self._now),
            SendWindow(self.peer.window_bytes),
        )
        self._next_id += 2
        self.streams[stream.id] = stream
        self._outbox.announce(stream, open_frame)
        return stream

    def go_away(
        self, code: Code, reason: str, retry_after_seconds: float = 0.0
    ) -> None:
        """Refuse new streams from now on and tell the peer; running ones go on."""
        if not self.draining and not self.closed:
            self.draining = True
            notice = frames.encode_go_away(code, retry_after_seconds, reason)
            self._outbox.control(notice)

    def close(self, code: Code, reason: str) -> None:
        """End the session: every stream's handler is told. Idempotent."""
        if self.closed:
            return
        self.closed = True
        streams, self.streams = list(self.streams.values()), {}
        self._peer_streams = 0
        for stream in streams:
            self._lose(stream, StreamReset(code, reason))
        self._outbox.clear()

    # What streams call

    def stream_ready(self, stream: Stream) -> None:
        """The stream has something new to send."""
        self._outbox.stream_ready(stream)

    def stream_reset(self, stream: Stream, code: Code, reason: str) -> None:
        if self._forget(stream):
            self._outbox.control(frames.encode_reset(stream.id, code, reason))

    def stream_accepted(self, stream: Stream) -> None:
        self._outbox.control(frames.encode_accept(stream.id))

    def window_due(self, stream: Stream) -> None:
        self._outbox.window_due(stream)

    # Receiving

    def _receive_data(
        self, stream: Stream, message: bytes, start: int, end: int
    ) -> None:
        if end - start <= 8:
            raise PeerProtocolError("DATA without data")
        if stream.state not in RECEIVING_STATES:
            stream.move(Input.RECEIVE_DATA)
        offset = int.from_bytes(message[start : start + 8])
        start += 8
        count = end - start
        stream.receive_window.received(offset, count)
        if stream.handler is not None:
            data: bytes | memoryview
            if count < COPY_BELOW_BYTES or 2 * count < len(message):
                data = message[start:end]
            else:
                data = memoryview(message)[start:end]
            try:
                stream.handler.data_received(data)
            except Exception as error:
                self._fail(stream, error)

    def _receive_other(self, type_: int, stream_id: int, payload: bytes) -> None:
        if self.peer is None:
            if type_ != FrameType.HELLO or stream_id != 0:
                raise PeerProtocolError("the first frame must be HELLO")
            self._receive_hello(parse_hello(payload))
        elif stream_id == 0:
            self._receive_session_frame(type_, payload)
        elif type_ == FrameType.OPEN:
            self._receive_open(stream_id, payload)
        else:
            stream = self.streams.get(stream_id)
            if stream is not None:
                self._receive_stream_frame(type_, stream, payload)
            elif type_ not in _STREAM_TYPES or not self._was_open(stream_id):
                raise PeerProtocolError(
                    f"frame type {type_} on stream {stream_id}, which is not open"
                )

    def _receive_hello(self, hello: Hello) -> None:
        self.peer = hello
        if self.role is Role.SERVER:
            # Version 1 declines every resume; see SPEC 10.
            self.hello = replace(self.hello, session_id=hello.session_id, resume=False)
            self._outbox.control_first(frames.encode_hello(self.hello.encode()))
        elif hello.session_id != self.hello.session_id:
            raise PeerProtocolError("HELLO repeats another session's id")
        elif hello.resume:
            raise PeerProtocolError("HELLO resumes what we did not ask to resume")
        self.handler.session_ready(hello)

    def _receive_session_frame(self, type_: int, payload: bytes) -> None:
        if type_ == FrameType.PING:
            self._outbox.pong(frames.parse_offset(payload))
        elif type_ == FrameType.PONG:
            self.liveness.pong(frames.parse_offset(payload), self._now)
        elif type_ == FrameType.GOAWAY:
            notice = frames.parse_go_away(payload)
            self.peer_draining = True
            self.handler.going_away(notice)
        else:
            raise PeerProtocolError(f"frame type {type_} on stream 0")

    def _receive_open(self, stream_id: int, payload: bytes) -> None:
        if self._is_ours(stream_id) or stream_id <= self._last_peer_id:
            raise PeerProtocolError(f"OPEN with stream id {stream_id}")
        opened = frames.parse_open(payload)
        self._last_peer_id = stream_id
        stream = Stream(
            self,
            stream_id,
            opened.target,
            ReceiveWindow(self.hello.window_bytes, self._now),
            SendWindow(opened.limit_offset),
        )
        self.streams[stream_id] = stream
        self._peer_streams += 1
        if self.draining:
            stream.reset(Code.GOING_AWAY, "this side takes no new streams")
        elif self._peer_streams > MAX_STREAMS:
            stream.reset(Code.LIMIT, f"{MAX_STREAMS} streams are open already")
        else:
            try:
                self.handler.stream_opened(stream)
                if stream.handler is None and not stream.closed:
                    raise InvalidState("stream_opened set no handler")
            except Exception as error:
                self._fail(stream, error)

    def _receive_stream_frame(self, type_: int, stream: Stream, payload: bytes) -> None:
        if type_ == FrameType.WINDOW:
            window = frames.parse_window(payload)
            stream.send_window.update(window.received_offset, window.limit_offset)
            self._outbox.stream_ready(stream)
        elif type_ == FrameType.EOF:
            stream.receive_window.received(frames.parse_offset(payload), 0)
            stream.move(Input.RECEIVE_EOF)
            if stream.handler is not None:
                try:
                    stream.handler.eof_received()
                except Exception as error:
                    self._fail(stream, error)
            if stream.closed:
                self._end(stream)
        elif type_ == FrameType.RESET:
            reset = frames.parse_reset(payload)
            self._forget(stream)
            self._lose(stream, StreamReset(reset.code, reset.reason))
        elif type_ == FrameType.ACCEPT and not payload and self._is_ours(stream.id):
            if not stream.accepted:
                stream.accepted = True
                try:
                    self.handler.stream_accepted(stream)
                except Exception as error:
                    self._fail(stream, error)
        else:
            raise PeerProtocolError(f"frame type {type_} on stream {stream.id}")

    # Ends of streams

    def _turn_taken(self, stream: Stream) -> None:
        """A stream has sent something: it may be over, or its writer may go on."""
        if stream.closed:
            self._end(stream)
        elif stream.paused:
            try:
                stream.drained()
            except Exception as error:
                self._fail(stream, error)

    def _end(self, stream: Stream) -> None:
        """Both directions have ended."""
        self._forget(stream)
        self._lose(stream, None)

    def _lose(self, stream: Stream, error: StreamReset | None) -> None:
        try:
            stream.lost(error)
        except Exception as bug:
            self.handler.stream_failed(stream, bug)

    def _fail(self, stream: Stream, bug: Exception) -> None:
        # Rule 29: a stream's error never ends the session, not even when it is our bug.
        handler, stream.handler = stream.handler, None
        error = StreamReset(Code.INTERNAL, "internal error, see the other side's log")
        stream.reset(error.code, error.reason)
        self.handler.stream_failed(stream, bug)
        stream.handler = handler
        self._lose(stream, error)

    def _forget(self, stream: Stream) -> bool:
        """Drop a closed stream; True if the peer knows it and is still to be told."""
        if self.streams.pop(stream.id, None) is None:
            return False
        if not self._is_ours(stream.id):
            self._peer_streams -= 1
        return self._outbox.forget(stream)

    def _is_ours(self, stream_id: int) -> bool:
        return stream_id % 2 == self.role.value % 2

    def _was_open(self, stream_id: int) -> bool:
        """Whether an id belongs to a stream that has been closed since."""
        if self._is_ours(stream_id):
            return 0 < stream_id < self._next_id
        return 0 < stream_id <= self._last_peer_id
