"""One WebSocket connection that carries a session: transport below, mux above.

The shell around the pure core, the same class on both ends. It does three things in a
fixed order and decides nothing: feed the core with what the transport read, send what
the core has for the peer, and pass on what the core says. Handshakes are over before it
starts: `tower_server.listener` and `tower_agent.dialer` hand in a protocol that is OPEN.

No task, queue or await lies on the way of a byte. All frames of one turn of the event
loop leave as one message (`call_soon`), and while the transport is full nothing is
pulled from the session, so that what waits there can still be overtaken.

Longer than our files are: beginning, going on and ending a connection share one state.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State

from shared.errors import Code, PeerProtocolError
from shared.mux.budget import WindowBudget
from shared.mux.session import Role, Session
from shared.mux.stream import Stream
from shared.tunnel.alarms import Alarm, alarms_of
from shared.tunnel.messages import MessageReader, MessageWriter, WebSocket
from shared.tunnel.owner import TunnelOwner
from shared.tunnel.progress import (
    PROGRESS_EVERY_SECONDS,
    WRITE_DEADLINE_SECONDS,
    WriteProgress,
)
from shared.tunnel.sockets import limit_unsent_bytes, set_no_delay
from shared.wire.frames import MAX_MESSAGE_BYTES, GoAway, encode_hello, printable
from shared.wire.hello import Hello, read_hello

__all__ = ["TunnelConnection", "TunnelOwner", "WebSocket"]

_log = logging.getLogger(__name__)

# What may wait in the TLS transport (user space) before we stop pulling. It has work while the
# kernel has; all more would only be a queue that nothing can overtake.
WRITE_HIGH_BYTES = 64 * 1024
WRITE_LOW_BYTES = 16 * 1024

# What may lie in the kernel and not be sent yet, for the same reason: a message of the largest
# size, so that it has work while we make the next one. (What is on its way is not in it.)
UNSENT_BYTES = 128 * 1024

# A peer that sends HELLO later than this after the upgrade is not one.
HELLO_DEADLINE_SECONDS = 4.5

# A timer that comes this much too late means that this process stood still (a stopped
# container, a sleeping laptop): then the silence is our own and says nothing of the peer.
_LATE_SECONDS = 1.0

# RFC 6455, 5.5: a close frame carries 125 bytes, two of them the code.
_MAX_CLOSE_REASON_BYTES = 123

# Not the loop's clock: uvloop's has steps of 1 ms, longer than the round trips of a LAN.
_clock = time.monotonic

# Timers are checked no more often than this, so that a due time in the past cannot spin.
_MIN_TIMER_SECONDS = 0.02

# The detached session that a HELLO asks to go on with; None if there is none.
FindSession = Callable[[Hello], Session | None]


class TunnelConnection(asyncio.Protocol):
    """Carries one session over one WebSocket connection."""

    def __init__(
        self,
        role: Role,
        websocket: WebSocket,
        hello: Hello,
        owner: TunnelOwner,
        *,
        resume: Session | None = None,
        find_session: FindSession | None = None,
        keeps_sessions: bool = False,
        budget: WindowBudget | None = None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            hello: Ours, for a session that begins.
            resume: The agent's detached session to go on with, if the server still has it.
            find_session: The server's: the detached session that a HELLO asks for. It must
                look with `replay.check_resume` before it takes a session off a live connection.
            keeps_sessions: When the connection is lost the session stays, detached, and
                the owner either resumes or closes it.
            budget: The process's memory for windows.
        """
        self._loop = asyncio.get_running_loop()
        self._websocket = websocket
        self._owner = owner
        # Set by start; None again once the connection is lost.
        self._transport: asyncio.Transport | None = None
        # The transport's buffer is full: nothing is pulled from the session.
        self._blocked = False
        # Looks after what waits for the peer to take something.
        self._progress = WriteProgress()
        # A flush is already due in this turn of the loop.
        self._flush_due = False
        # Between the transport and the session, once the handshake is done.
        self._reader = MessageReader(websocket)
        self._writer = MessageWriter(websocket)
        # When the bytes arrived that are being dealt with.
        self._received_at = 0.0
        # The beginning of a message that a proxy on the way has fragmented.
        self._fragments = bytearray()
        # Looks after the session, from `start` until the end begins.
        self._alarm = Alarm(alarms_of(self._loop), self._handle_timer)
        # Enforces the end, once it has begun.
        self._end_timer: asyncio.TimerHandle | None = None
        # The peer's HELLO; a ConnectionError when the connection ends before it.
        self.ready: asyncio.Future[Hello] = self._loop.create_future()
        self._started_at = _clock()
        # Why the connection ends, once that is known.
        self._reason: str | None = None
        # The transport is told to close; only its connection_lost is still to come.
        self._ending = False
        self._role = role
        self._hello = hello
        self._find_session = find_session
        self._keeps_sessions = keeps_sessions
        self._budget = budget
        # Whether the peer's first message has been dealt with: the session is ours from then.
        self._greeted = False
        # The agent's session to be resumed, and its epoch when we asked for it.
        self._resume = resume
        self._resume_epoch = resume.epoch if resume is not None else 0
        # A new one, until the first message shows that another goes on.
        self.session = Session(role, hello, self, self._started_at, budget=budget)

    # Life

    def start(self, transport: asyncio.Transport) -> None:
        """Take over a transport whose WebSocket handshake is done."""
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        set_no_delay(transport)
        limit_unsent_bytes(transport, UNSENT_BYTES)
        transport.set_protocol(self)
        if transport.is_closing():
            # It broke before it was ours; nobody will call connection_lost any more.
            self._loop.call_soon(self.connection_lost, None)
            return
        self._arm_timer()
        if self._resume is not None:
            self._ask_to_resume(self._resume)
        else:
            self._flush()
        # Frames that came in the same segment as the end of the handshake.
        self._received_at = _clock()
        self._receive_events()

    @property
    def closed(self) -> bool:
        return self._transport is None

    @property
    def usable(self) -> bool:
        """Whether a new stream may be opened."""
        session = self.session
        return (
            self._transport is not None
            and not session.closed
            and self._greeted
            and session.peer is not None
            and not session.peer_draining
            and not session.draining
        )

    def close(self, code: Code, reason: str) -> None:
        """End the session and the connection, telling the peer why. Idempotent."""
        if self._transport is None or self._reason is not None:
            return
        self._reason = reason
        self.session.go_away(code, reason)
        self._flush()
        if self._blocked:
            self._send_message()  # over the mark by one message: GOAWAY goes first
        self.session.close(code, reason)
        self._end(CloseCode.GOING_AWAY, reason)

    def abort(self, reason: str) -> None:
        """Drop the connection at once. Idempotent."""
        if self._transport is not None:
            self._reason = self._reason or reason
            self._transport.abort()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        now = _clock()
        self.session.liveness.received(now)
        self._received_at = now
        try:
            self._reader.receive(data, self._receive_message, self._receive_events)
        except PeerProtocolError as error:
            self._fail(str(error))
        # An answered PING makes the next one due before we would have given up on this one.
        due = max(self.session.next_timer(), now + _MIN_TIMER_SECONDS)
        if due < self._alarm.due and self._alarm.is_set:
            self._arm_timer()

    def eof_received(self) -> bool:
        self._websocket.receive_eof()
        return False

    def pause_writing(self) -> None:
        self._blocked = True
        self._watch_progress(_clock())

    def resume_writing(self) -> None:
        self._blocked = False
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is None:
            return
        self._transport = None
        self._alarm.stop()
        if self._end_timer is not None:
            self._end_timer.cancel()
        reason = self._reason or (
            f"the connection broke: {error}" if error else "the peer closed it"
        )
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason))
            self.ready.exception()  # nobody need wait for it
        if self._session_may_go_on():
            self.session.detach()
        elif self.session.handler is self:
            self.session.close(Code.SESSION_LOST, f"the tunnel was lost: {reason}")
        self._owner.tunnel_lost(self, reason)

    def _session_may_go_on(self) -> bool:
        """Whether another connection may carry on: it began, and nobody has ended it."""
        session = self.session
        return (
            self._keeps_sessions
            and self._greeted
            and session.handler is self
            and session.may_go_on
            and not self._peer_gave_up()
        )

    def _peer_gave_up(self) -> bool:
        """Whether the peer has said that we broke the protocol: it has ended the session."""
        close = self._websocket.close_rcvd
        return close is not None and close.code == CloseCode.PROTOCOL_ERROR

    def release(self, reason: str) -> Session:
        """Give up the session, undamaged, and drop the connection: another one takes over."""
        session, self._reason = self.session, self._reason or reason
        self._keeps_sessions = False
        session.detach()
        # What still arrives here is not the session's any more.
        self.session = Session(self._role, self._hello, self, _clock())
        self.session.close(Code.REPLACED, reason)
        self.abort(reason)
        return session

    # Beginning or going on

    def _ask_to_resume(self, session: Session) -> None:
        self.session.close(Code.REPLACED, "an earlier session goes on")
        hello = session.resume_hello().encode()
        self._websocket.send_binary(encode_hello(hello))
        self._write_websocket()

    def _receive_first(self, message: bytes, now: float) -> None:
        """The peer's HELLO: begin a session, or go on with one."""
        self._greeted = True
        hello = read_hello(message)
        if self._resume is not None:
            self._receive_answer(self._resume, hello, message, now)
            return
        session = None
        if hello.resume and self._find_session is not None:
            session = self._find_session(hello)
        if session is None or session.closed:
            self.session.receive_message(message, now)
        else:
            self.session.close(Code.REPLACED, "an earlier session goes on")
            self._go_on(session, hello, now)

    def _receive_answer(
        self, session: Session, hello: Hello, message: bytes, now: float
    ) -> None:
        """The server's answer to our wish to go on with a session."""
        if hello.session_id != session.hello.session_id:
            raise PeerProtocolError("HELLO repeats another session's id")
        if session.epoch != self._resume_epoch or (hello.resume and session.closed):
            # Another dial was faster, or time is up: what we said is no longer true.
            self.abort("the session went on, or ended, while this dial was under way")
        elif hello.resume:
            self._go_on(session, hello, now)
        else:
            session.close(
                Code.SESSION_LOST, "the server does not have the session any more"
            )
            self.session = Session(
                self._role,
                session.hello,
                self,
                now,
                says_hello=False,
                budget=self._budget,
            )
            self.session.receive_message(message, now)

    def _go_on(self, session: Session, hello: Hello, now: float) -> None:
        self.session = session
        session.attach(hello, self, now)
        _log.info(
            "session goes on: %d messages are sent again", session.replay.resend_count
        )
        self.session_ready(hello)

    # shared.mux.session.SessionHandler

    def session_ready(self, hello: Hello) -> None:
        self._arm_timer()  # pings may begin
        if not self.ready.done():
            self.ready.set_result(hello)
        self._owner.tunnel_ready(self, hello)

    def stream_opened(self, stream: Stream) -> None:
        self._owner.stream_opened(self, stream)

    def stream_accepted(self, stream: Stream) -> None:
        self._owner.stream_accepted(self, stream)

    def going_away(self, notice: GoAway) -> None:
        self._owner.going_away(self, notice)

    def stream_failed(self, stream: Stream, error: Exception) -> None:
        _log.error("bug in the handler of %r", stream, exc_info=error)

    def output_ready(self) -> None:
        if not self._flush_due and not self._blocked and self._transport is not None:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    # The way of a byte

    def _flush(self) -> None:
        self._flush_due = False
        while (
            not self._blocked and self._transport is not None and self._send_message()
        ):
            pass

    def _send_message(self) -> bool:
        """Write the next message; False when there is none, or none may be written."""
        if self._websocket.state is not State.OPEN:
            return False
        now = _clock()
        message = self.session.data_to_send(now)
        if message:
            assert self._transport is not None  # nobody takes messages without one
            if self._websocket.writes:
                self._write_websocket()
            pieces = self._writer.frame(message)
            if len(pieces) == 1:
                self._transport.write(pieces[0])
            else:
                self._transport.writelines(pieces)
            if self.session.awaits_ack and not self._progress.is_watching:
                self._watch_progress(now)
        return bool(message)

    def _write_websocket(self) -> None:
        if self._transport is not None:
            for data in self._websocket.data_to_send():
                if data:
                    self._transport.write(data)

    def _receive_events(self) -> None:
        """Deal with what the library has read."""
        websocket = self._websocket
        try:
            for event in websocket.events_received():
                if isinstance(event, Frame):
                    self._receive_frame(event)
        except PeerProtocolError as error:
            self._fail(str(error))
            return
        if websocket.state is not State.OPEN:
            self._closing()
        elif websocket.writes:
            self._write_websocket()

    def _receive_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.BINARY and frame.fin:
            self._receive_message(bytes(frame.data))
        elif frame.opcode in (Opcode.BINARY, Opcode.CONT):
            # RFC 6455, 5.4: an intermediary may change the fragmentation of a message.
            if len(self._fragments) + len(frame.data) > MAX_MESSAGE_BYTES:
                raise PeerProtocolError(f"message of over {MAX_MESSAGE_BYTES} bytes")
            self._fragments += frame.data
            if frame.fin:
                message, self._fragments = bytes(self._fragments), bytearray()
                self._receive_message(message)
        elif frame.opcode is Opcode.TEXT:
            raise PeerProtocolError("text message; SPEC 4 knows binary ones only")

    def _receive_message(self, message: bytes) -> None:
        if self._greeted:
            self.session.receive_message(message, self._received_at)
        else:
            self._receive_first(message, self._received_at)

    # Ends

    def _fail(self, reason: str) -> None:
        """End the connection for the peer's fault."""
        if self._reason is None:
            _log.warning("the peer broke the protocol: %s", reason)
            self._reason = f"protocol error: {reason}"
        self.session.close(Code.PROTOCOL, self._reason)
        self._end(CloseCode.PROTOCOL_ERROR, reason)

    def _closing(self) -> None:
        """The WebSocket is closing: by the peer's close frame, or its broken framing."""
        if self._reason is None:
            error = self._websocket.parser_exc
            close = self._websocket.close_rcvd
            if close is not None and close.reason:
                self._reason = printable(close.reason)
            elif error is not None and not isinstance(error, EOFError):
                self._reason = f"protocol error: {error}"
        self._end(CloseCode.NORMAL_CLOSURE, "")

    def _end(self, code: CloseCode, reason: str) -> None:
        """Close the WebSocket (if that has not begun) and the transport. Idempotent."""
        if self._websocket.state is State.OPEN:
            text = reason.encode(errors="replace")[:_MAX_CLOSE_REASON_BYTES]
            self._websocket.fail(code, text.decode(errors="ignore"))
        self._write_websocket()
        if self._transport is None or self._ending:
            return
        self._ending = True
        self._transport.close()
        # A peer that does not read, or never ends its TLS, cannot keep us from closing.
        self._alarm.stop()
        self._end_timer = self._loop.call_later(
            WRITE_DEADLINE_SECONDS, self.abort, "the peer does not let us close"
        )

    # Time

    def _arm_timer(self) -> None:
        if self._ending:
            return
        now = _clock()
        due = self.session.next_timer()
        if not self._greeted:
            due = min(due, self._started_at + HELLO_DEADLINE_SECONDS)
        if self._progress.is_watching:
            due = min(due, now + PROGRESS_EVERY_SECONDS)
        due = max(due, now + _MIN_TIMER_SECONDS)
        self._alarm.set(due)

    def _handle_timer(self, due: float) -> None:
        if self._transport is None:
            return
        now = _clock()
        if now - due > _LATE_SECONDS:
            self.session.liveness.forgive(now)
            self._progress.moved_at = now
        if not self.session.handle_timer(now):
            self.abort("the peer went silent: nothing arrived for several seconds")
        elif self._write_is_stuck(now):
            self.abort("the peer stopped reading: nothing left for several seconds")
        elif not self._greeted and now - self._started_at >= HELLO_DEADLINE_SECONDS:
            self.abort("the peer sent no HELLO")
        else:
            self._arm_timer()

    def _watch_progress(self, now: float) -> None:
        if self._transport is None or self._progress.is_watching:
            return
        self._progress.begin(self._transport, self.session, now)
        if self._alarm.is_set and self._alarm.due > now + PROGRESS_EVERY_SECONDS:
            self._arm_timer()

    def _write_is_stuck(self, now: float) -> bool:
        if self._transport is None or not self._progress.is_watching:
            return False
        if not self._blocked and not self.session.awaits_ack:
            self._progress.end()
            return False
        return self._progress.is_stuck(self._transport, self.session, now)
