"""The session: many streams over one ordered, reliable carrier of messages.

Messages, calls and a time come in; handler calls and messages go out. Nothing here
touches a socket or reads a clock. The shell feeds `receive_message`, asks
`data_to_send` for the next message whenever its transport has room, and calls
`handle_timer` at `next_timer`. Both ends are this class; `Role` only decides who uses odd
stream numbers.

Output is pulled: data waits in its stream's queue until the transport has room (see
`shared.mux.outbox`), so memory is bounded: writers are paused. SPEC 5 to 8 and 10.

Handlers are called in the middle of all this and may call anything back: write, reset,
open, close. So state is settled before a handler is told, and looked at again after.
Somewhat longer than our files are: it is the one place where frames become calls.
"""

from dataclasses import replace
from functools import partial

from shared.errors import Code, InvalidState, PeerProtocolError, StreamReset
from shared.mux.budget import WindowBudget
from shared.mux.counters import Counters
from shared.mux.handler import Role, SessionHandler
from shared.mux.idle import IdleCredit
from shared.mux.in_flight import InFlight
from shared.mux.liveness import (
    DEAD_AFTER_SECONDS,
    PING_AFTER_SECONDS,
    SERVER_PING_AFTER_SECONDS,
    Liveness,
)
from shared.mux.outbox import MESSAGE_BYTES, Outbox
from shared.mux.replay import Replay
from shared.mux.stream import RECEIVING_STATES, Input, Stream
from shared.mux.table import MAX_STREAMS, StreamTable
from shared.mux.windows import (
    INITIAL_WINDOW_BYTES,
    SHORT_PATH_SECONDS,
    ReceiveWindow,
    SendWindow,
)
from shared.streams import wind_down
from shared.wire import frames
from shared.wire.frames import FrameType
from shared.wire.hello import Hello, read_hello

__all__ = ["MAX_STREAMS", "MESSAGE_BYTES", "Role", "Session", "SessionHandler"]

# Data below this is copied out of its message, and so is data that fills less than half
# of it: what a handler keeps then keeps at most twice its own size alive.
COPY_BELOW_BYTES = 8 * 1024

# What liveness itself needs in the five seconds between two measurements is a quarter of it.
IDLE_BYTES = 1024

# Answers (RESET, ACCEPT) that may wait for a peer that asks and does not read: each of
# its streams and each of ours twice over, about 100 bytes each.
MAX_WAITING_ANSWERS = 4 * MAX_STREAMS

_DATA = int(FrameType.DATA)
# What may still be under way to a stream that we have closed.
_STREAM_TYPES = (
    FrameType.EOF,
    FrameType.RESET,
    FrameType.WINDOW,
    FrameType.ACCEPT,
    FrameType.RETURN,
)


class Session:
    """A session's streams and everything that goes between its two ends."""

    def __init__(
        self,
        role: Role,
        hello: Hello,
        handler: SessionHandler,
        now: float,
        *,
        says_hello: bool = True,
        budget: WindowBudget | None = None,
    ) -> None:
        """Begin; `says_hello` and `session_ready` follow.

        Args:
            hello: Ours.
            says_hello: Whether the agent's HELLO is still to be sent.
            budget: The process's, of which this session may take a part; None: its own.
        """
        self.role = role
        self.handler = handler
        # Ours. The server's repeats the agent's session id once that is known.
        self.hello = hello
        # The peer's; None until it arrives, and no stream may be opened before.
        self.peer: Hello | None = None
        self.liveness = Liveness(
            now,
            PING_AFTER_SECONDS if role is Role.AGENT else SERVER_PING_AFTER_SECONDS,
        )
        # What had been counted when we last thought about a PING: has there been traffic since?
        self._carried_bytes = 0
        # For people who look. The owner may have several sessions count into one.
        self.counters = Counters()
        self._table = StreamTable(
            role,
            self._drop,
            lambda stream, error: self.handler.stream_failed(stream, error),
        )
        # Streams that may send more than they seem to need.
        self._idle_credit = IdleCredit()
        # What waits to be sent.
        self._outbox = Outbox(handler.output_ready, self._table.turn_taken)
        # What streams call for each write and read: without a step between.
        self.stream_ready = self._outbox.stream_ready
        self.window_due = self._outbox.window_due
        # Live streams by id, the table's.
        self.streams = self._table.live
        # Set by go_away: we open no streams. Set by GOAWAY: the peer takes none.
        self.draining = False
        self.peer_draining = False
        # Memory for windows and kept messages.
        self.budget = (budget or WindowBudget()).for_session()
        # The PING behind our GOAWAY: due, its number once it has left, and answered, which
        # means that no OPEN of the peer's can come any more (SPEC 5.8).
        self._goodbye_is_due = False
        self._goodbye_number: int | None = None
        self._goodbye_is_heard = False
        # Messages under way, for sending them again on another connection.
        self.replay = Replay(self.budget)
        # ... and how many bytes of them the path should hold.
        self.in_flight = InFlight()
        # No connection carries the session: nothing goes out until `attach`.
        self.detached = False
        # Counts attachments: a connection that was begun for an earlier one is too late.
        self.epoch = 0
        # Once closed nothing comes in or out.
        self.closed = False
        # Time of the last input: calls from handlers need no clock.
        self._now = now
        # SPEC 3: the agent speaks first. A message of its own, and not counted.
        self._hello_due: bytes | None = None
        if role is Role.AGENT and says_hello:
            self._say_hello()

    # What the shell calls

    def receive_message(self, message: bytes, now: float) -> None:
        """Take in one message from the peer.

        Raises:
            PeerProtocolError: The peer broke SPEC. The caller closes the connection;
                streams are told by `close`.
        """
        self._now = now
        self.counters.received_bytes += len(message)
        if self.peer is None:
            if not self.closed:
                self._receive_first(message)
            return
        streams, receive_data = self.streams, self._receive_data
        for type_, stream_id, start, end in frames.split(message):
            if self.closed:
                return
            if type_ == _DATA:
                stream = streams.get(stream_id)
                if stream is not None:
                    receive_data(stream, message, start, end)
                elif not self._table.was_open(stream_id):
                    raise PeerProtocolError(f"data for unopened stream {stream_id}")
            else:
                self._receive_other(type_, stream_id, message[start:end])
        if self._outbox.control_frames > MAX_WAITING_ANSWERS:
            raise PeerProtocolError("too many frames that need answers, none read")
        # Only now: what is counted is never sent again, so it must have been dealt with.
        self.replay.received(len(message))
        if self.replay.ack_is_due:
            self.handler.output_ready()

    def data_to_send(self, now: float) -> bytes:
        """The next message for the peer, empty when there is nothing to send."""
        self._now = now
        if not self.wants_to_send:
            return b""
        self.liveness.sent(now)
        if self._hello_due is not None:
            message, self._hello_due = self._hello_due, None
            self.counters.sent_bytes += len(message)
            return message
        replay = self.replay
        again = replay.next_to_resend()
        if again is not None:
            self.counters.resent_bytes += len(again)
            return again
        if self._goodbye_is_due:
            self._goodbye_is_due = False
            self._goodbye_number = self.liveness.ping(now)
            self._outbox.control(frames.encode_ping(self._goodbye_number))
        in_flight, outbox = self.in_flight, self._outbox
        message = outbox.next_message(
            now,
            self.liveness.round_trip_seconds or 0.0,
            ack=replay.report(),
            asks=outbox.has_data and in_flight.asks(),
            data_bytes=0 if replay.is_full else in_flight.room_bytes,
        )
        if message:  # the peer counts only what it gets
            replay.sent(message)
            in_flight.sent(len(message), now, more=outbox.has_data)
            self.counters.sent_bytes += len(message)
            if outbox.bulk_bytes:
                self.counters.sent_bulk_bytes += outbox.bulk_bytes
                outbox.bulk_bytes = 0
        return message

    @property
    def wants_to_send(self) -> bool:
        if self.closed or self.detached:
            return False
        if self._hello_due is not None:
            return True
        if self.peer is None:
            return False  # SPEC 3: nothing but HELLO before the peer's HELLO
        replay = self.replay
        if replay.ack_is_due or replay.has_more_to_resend:
            return True
        if replay.is_full or self.awaits_ack:
            return self._outbox.has_urgent
        return bool(self._outbox)

    @property
    def awaits_ack(self) -> bool:
        """Whether the path holds as much as it should: data waits for the peer's ACK."""
        return self.in_flight.bytes >= self.in_flight.limit_bytes

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
        self.return_idle_credit(now)
        if self.peer is not None and self.liveness.ping_is_due(now):
            if not (self._is_idle() and self.liveness.put_off(now)):
                self._outbox.control(frames.encode_ping(self.liveness.ping(now)))
        return True

    def _is_idle(self) -> bool:
        """Whether next to nothing went either way since this was last asked."""
        before, counters = self._carried_bytes, self.counters
        self._carried_bytes = counters.sent_bytes + counters.received_bytes
        return self._carried_bytes - before < IDLE_BYTES

    def return_idle_credit(self, now: float) -> None:
        """Give back what streams at rest do not use; `handle_timer` does it, too."""
        for stream in self._idle_credit.due(now):
            limits = stream.send_window.give_back(INITIAL_WINDOW_BYTES)
            self._outbox.control(frames.encode_return(stream.id, *limits))

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
        if self.draining or self.peer_draining:
            raise StreamReset(Code.GOING_AWAY, "the tunnel takes no new streams")
        stream_id = self._table.new_id()
        open_frame = frames.encode_open(stream_id, INITIAL_WINDOW_BYTES, target)
        stream = Stream(
            self,
            stream_id,
            target,
            ReceiveWindow(INITIAL_WINDOW_BYTES, self._now, self.budget),
            SendWindow(self.peer.window_bytes),
        )
        self._table.add_own(stream)
        self._outbox.announce(stream, open_frame)
        return stream

    def go_away(
        self, code: Code, reason: str, retry_after_seconds: float = 0.0
    ) -> None:
        """Want no new streams from now on and tell the peer; running ones go on.

        Those that the peer opens before it knows are still taken, so that nobody who
        comes at this moment is turned away. `is_spent` says when the session may end.
        """
        if not self.draining and not self.closed:
            self.draining = self._goodbye_is_due = True
            notice = frames.encode_go_away(code, retry_after_seconds, reason)
            self._outbox.control(notice)

    @property
    def is_spent(self) -> bool:
        """Whether a session that drains has served its users: none is left, none can come.

        Users' streams are those that the server opened; an agent's own are its reports.
        """
        if self.role is Role.AGENT:
            none_can_come = self._goodbye_is_heard or self.peer_draining
        else:
            none_can_come = self.draining
        return none_can_come and all(number % 2 for number in self.streams)

    @property
    def own_stream_count(self) -> int:
        """How many streams that we opened are open."""
        return len(self.streams) - self._table.peer_count

    def wind_down(self) -> None:
        """Have streams end that can do so without harm; for a session that drains."""
        for stream in list(self.streams.values()):
            self._table.tell(stream, partial(wind_down, stream.handler))

    def reset_streams(self, code: Code, reason: str) -> int:
        """End all streams now, telling both ends why; returns how many were users'."""
        streams = list(self.streams.values())
        for stream in streams:
            handler = stream.handler
            stream.reset(code, reason)
            stream.handler = handler
            self._table.lose(stream, StreamReset(code, reason))
        return sum(stream.id % 2 == 0 for stream in streams)

    def close(self, code: Code, reason: str) -> None:
        """End the session: every stream's handler is told. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._table.end_all(code, reason)
        self._outbox.clear()
        self._idle_credit.clear()
        self.replay.close()

    # A lost connection

    def detach(self) -> None:
        """The connection is lost and another may come: keep everything, send nothing.

        The owner sees to it that `attach` or `close` follows in time. Until then streams
        may be written to, and pause when their queues are full.
        """
        self.detached = True

    @property
    def may_go_on(self) -> bool:
        """Whether it is worth another connection: it began, and nobody ends it."""
        return (
            self.peer is not None
            and not self.closed
            and not self.draining
            and not self.peer_draining
        )

    def resume_hello(self) -> Hello:
        """What the agent says on the new connection."""
        return replace(self.hello, resume=True, received=self.replay.received_count)

    def attach(self, hello: Hello, handler: SessionHandler, now: float) -> None:
        """Go on over a new connection, whose peer said this HELLO; a server answers it.

        Raises:
            PeerProtocolError: If the peer's count does not fit what was sent. Nothing has
                changed then.
        """
        if self.closed or self.peer is None or not self.detached:
            raise InvalidState("attach to a session that is over, or has a connection")
        self.replay.resume(hello.received)
        self.handler = handler
        self._now = now
        self._outbox.wake = handler.output_ready
        self.liveness.start_over(now)
        self.in_flight.start_over(self.replay.sent_count)
        self._outbox.fit(self.in_flight.limit_bytes, self.in_flight.rate)
        self.detached = False
        self.epoch += 1
        self.counters.resumes += 1
        if self.role is Role.SERVER:
            self.hello = self.resume_hello()
            self._say_hello()
        handler.output_ready()

    # What streams call

    def stream_reset(self, stream: Stream, code: Code, reason: str) -> None:
        if self._table.forget(stream):
            self._outbox.control(frames.encode_reset(stream.id, code, reason))

    def _drop(self, stream: Stream) -> bool:
        """Take a stream from all that waits; False if the peer has not heard of it."""
        self._idle_credit.forget(stream)
        return self._outbox.forget(stream)

    def stream_accepted(self, stream: Stream) -> None:
        self._outbox.control(frames.encode_accept(stream.id))

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
                self._table.fail(stream, error)

    def _receive_other(self, type_: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            self._receive_session_frame(type_, payload)
        elif type_ == FrameType.OPEN:
            self._receive_open(stream_id, payload)
        else:
            stream = self.streams.get(stream_id)
            if stream is not None:
                self._receive_stream_frame(type_, stream, payload)
            elif type_ not in _STREAM_TYPES or not self._table.was_open(stream_id):
                raise PeerProtocolError(
                    f"frame type {type_} on stream {stream_id}, which is not open"
                )

    def _receive_first(self, message: bytes) -> None:
        """The peer's HELLO, for a session that begins."""
        hello = read_hello(message)
        if self.role is Role.SERVER:
            # Also the answer to a resume of a session that we do not have: begin anew.
            self.hello = replace(self.hello, session_id=hello.session_id, resume=False)
            self._say_hello()
        elif hello.session_id != self.hello.session_id:
            raise PeerProtocolError("HELLO repeats another session's id")
        elif hello.resume:
            raise PeerProtocolError("HELLO resumes what we did not ask to resume")
        self.peer = hello
        self.handler.session_ready(hello)

    def _say_hello(self) -> None:
        self._hello_due = frames.encode_hello(self.hello.encode())
        self.handler.output_ready()

    def _receive_session_frame(self, type_: int, payload: bytes) -> None:
        if type_ == FrameType.PING:
            self._outbox.pong(frames.parse_offset(payload))
        elif type_ == FrameType.PONG:
            number = frames.parse_offset(payload)
            sample = self.liveness.pong(number, self._now)
            if sample is not None:
                self.in_flight.round_trip(sample, self._now)
                shortest = self.liveness.min_round_trip_seconds or 0.0
                self._outbox.is_short_path = shortest < SHORT_PATH_SECONDS
            if self._goodbye_number is not None and number >= self._goodbye_number:
                self._goodbye_is_heard = True
        elif type_ == FrameType.ACK:
            self._receive_ack(frames.parse_offset(payload))
        elif type_ == FrameType.GOAWAY:
            notice = frames.parse_go_away(payload)
            self.peer_draining = True
            self.handler.going_away(notice)
        else:
            raise PeerProtocolError(f"frame type {type_} on stream 0")

    def _receive_ack(self, count: int) -> None:
        self.replay.acknowledged(count)
        self.in_flight.acknowledged(count, self._now)
        self._outbox.fit(self.in_flight.limit_bytes, self.in_flight.rate)
        if self._outbox.has_data:
            self.handler.output_ready()

    def _receive_open(self, stream_id: int, payload: bytes) -> None:
        if not self._table.may_be_opened(stream_id):
            raise PeerProtocolError(f"OPEN with stream id {stream_id}")
        opened = frames.parse_open(payload)
        stream = Stream(
            self,
            stream_id,
            opened.target,
            ReceiveWindow(self.hello.window_bytes, self._now, self.budget),
            SendWindow(opened.limit_offset),
        )
        self._table.add_peers(stream)
        if self._goodbye_is_heard:
            stream.reset(Code.GOING_AWAY, "this side takes no new streams")
        elif self._table.peer_has_too_many:
            stream.reset(Code.LIMIT, f"{MAX_STREAMS} streams are open already")
        else:
            self._table.tell(stream, lambda: self._hand_over(stream))

    def _hand_over(self, stream: Stream) -> None:
        self.handler.stream_opened(stream)
        if stream.handler is None and not stream.closed:
            raise InvalidState("stream_opened set no handler")

    def _receive_stream_frame(self, type_: int, stream: Stream, payload: bytes) -> None:
        if type_ == FrameType.WINDOW:
            window = frames.parse_window(payload)
            update = stream.send_window.update
            if update(window.received_offset, window.limit_offset) and stream.queue:
                self.counters.window_stalls += 1
            if self.peer is not None and self.peer.takes_returns:
                self._idle_credit.watch(stream, self._now)
            self._outbox.stream_ready(stream)
        elif type_ == FrameType.RETURN:
            returned = frames.parse_return(payload)
            stream.receive_window.returned(*returned, self._now)
            if stream.receive_window.taken(0) and stream.state in RECEIVING_STATES:
                self._outbox.window_due(stream)
        elif type_ == FrameType.EOF:
            stream.receive_window.received(frames.parse_offset(payload), 0)
            stream.move(Input.RECEIVE_EOF)
            stream.receive_window.finish()
            if stream.handler is not None:
                self._table.tell(stream, stream.handler.eof_received)
            if stream.closed:
                self._table.end(stream)
        elif type_ == FrameType.RESET:
            reset = frames.parse_reset(payload)
            self._table.forget(stream)
            self._table.lose(stream, StreamReset(reset.code, reset.reason))
        elif (
            type_ == FrameType.ACCEPT and not payload and self._table.is_own(stream.id)
        ):
            if not stream.accepted:
                stream.accepted = True
                self._table.tell(stream, lambda: self.handler.stream_accepted(stream))
        else:
            raise PeerProtocolError(f"frame type {type_} on stream {stream.id}")
