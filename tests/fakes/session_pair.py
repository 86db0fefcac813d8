"""Two session cores and a fake link between them: the whole protocol without a socket.

The link is two queues of messages. `deliver` moves one message, `settle` all of them. The
clock is a number that only `sleep` moves. Sessions do what they would in the real shell:
a PeerProtocolError closes both ends.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from shared.errors import Code, PeerProtocolError, StreamReset
from shared.mux.budget import WindowBudget
from shared.mux.session import Role, Session
from shared.mux.stream import Stream
from shared.mux.windows import INITIAL_WINDOW_BYTES
from shared.wire.frames import GoAway
from shared.wire.hello import Hello

__all__ = ["SESSION_ID", "End", "Recorder", "SessionPair", "hello"]

SESSION_ID = "0123456789abcdef0123456789abcdef"


def hello(
    window_bytes: int = INITIAL_WINDOW_BYTES, session_id: str = SESSION_ID
) -> Hello:
    return Hello(session_id=session_id, window_bytes=window_bytes, software="test 1")


class Recorder:
    """A stream's handler that keeps what it is told; takes everything unless `stalled`."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.received = bytearray()
        self.untaken_bytes = 0
        self.stalled = False
        self.eofs = 0
        # What stream_closed said, once for each call.
        self.ends: list[StreamReset | None] = []
        self.paused = False
        self.pauses = 0
        # Called in the middle of the callbacks, to do what handlers do.
        self.on_data: Callable[[Recorder], None] | None = None
        self.on_eof: Callable[[Recorder], None] | None = None
        self.on_closed: Callable[[Recorder], None] | None = None
        self.on_pause: Callable[[Recorder], None] | None = None
        self.on_resume: Callable[[Recorder], None] | None = None

    def take(self, count: int | None = None) -> None:
        count = self.untaken_bytes if count is None else min(count, self.untaken_bytes)
        self.untaken_bytes -= count
        if count:
            self.stream.taken(count)

    # StreamHandler

    def data_received(self, data: bytes | memoryview) -> None:
        assert not self.eofs and not self.ends, "data after the end"
        assert len(data) > 0
        self.received += data
        self.untaken_bytes += len(data)
        if self.on_data:
            self.on_data(self)
        if not self.stalled:
            self.take()

    def eof_received(self) -> None:
        assert not self.eofs and not self.ends
        self.eofs += 1
        if self.on_eof:
            self.on_eof(self)

    def stream_closed(self, error: StreamReset | None) -> None:
        assert not self.ends, "told twice"
        self.ends.append(error)
        if self.on_closed:
            self.on_closed(self)

    def pause_writing(self) -> None:
        assert not self.paused
        self.paused = True
        self.pauses += 1
        if self.on_pause:
            self.on_pause(self)

    def resume_writing(self) -> None:
        assert self.paused
        self.paused = False
        if self.on_resume:
            self.on_resume(self)


@dataclass
class End:
    """One side: its session, its handler calls, what it sent and is not delivered."""

    session: Session = field(init=False)
    outgoing: deque[bytes] = field(default_factory=deque)
    handlers: dict[int, Recorder] = field(default_factory=dict)
    accepted: list[int] = field(default_factory=list)
    notices: list[GoAway] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    ready_calls: int = 0
    wakes: int = 0
    broke: PeerProtocolError | None = None
    # Of the process, for its sessions; None: each has its own.
    budget: WindowBudget | None = None
    # What to do with a stream that the peer opens, beyond recording it.
    on_open: Callable[[Recorder], None] | None = None

    def open(self, target: str = "tcp/echo") -> Recorder:
        stream = self.session.open_stream(target)
        recorder = Recorder(stream)
        stream.handler = recorder
        self.handlers[stream.id] = recorder
        return recorder

    # SessionHandler

    def session_ready(self, hello: Hello) -> None:
        self.ready_calls += 1

    def stream_opened(self, stream: Stream) -> None:
        recorder = Recorder(stream)
        stream.handler = recorder
        self.handlers[stream.id] = recorder
        if self.on_open is not None:
            self.on_open(recorder)

    def stream_accepted(self, stream: Stream) -> None:
        self.accepted.append(stream.id)

    def going_away(self, notice: GoAway) -> None:
        self.notices.append(notice)

    def stream_failed(self, stream: Stream, error: Exception) -> None:
        self.failures.append(error)

    def output_ready(self) -> None:
        self.wakes += 1


class SessionPair:
    """An agent's session and a server's; both HELLOs are exchanged unless told otherwise."""

    def __init__(
        self,
        *,
        agent_window: int = INITIAL_WINDOW_BYTES,
        server_window: int = INITIAL_WINDOW_BYTES,
        budgets: tuple[WindowBudget | None, WindowBudget | None] = (None, None),
        shake_hands: bool = True,
        now: float = 1000.0,
    ) -> None:
        self.now = now
        self.agent, self.server = End(), End()
        self.agent.budget, self.server.budget = budgets
        self._windows = agent_window, server_window
        self._begin_sessions()
        if shake_hands:
            self.settle()
            assert self.agent.ready_calls == self.server.ready_calls == 1

    def _begin_sessions(self) -> None:
        agent, server = self.agent, self.server
        agent_window, server_window = self._windows
        agent.session = Session(
            Role.AGENT, hello(agent_window), agent, self.now, budget=agent.budget
        )
        server.session = Session(
            Role.SERVER,
            hello(server_window, ""),
            server,
            self.now,
            budget=server.budget,
        )

    def peer_of(self, end: End) -> End:
        return self.server if end is self.agent else self.agent

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def pull(self, end: End, max_messages: int = 1_000_000) -> int:
        """Take messages from a session as a transport with that much room would."""
        count = 0
        while count < max_messages and end.session.wants_to_send:
            message = end.session.data_to_send(self.now)
            if message:
                end.outgoing.append(message)
                count += 1
        return count

    def deliver(self, end: End) -> bool:
        """Bring the oldest message of `end` to its peer; False if there is none."""
        if not end.outgoing:
            return False
        self.feed(self.peer_of(end), end.outgoing.popleft())
        return True

    def feed(self, end: End, message: bytes) -> None:
        """Give a message to a session, as the shell does."""
        end.session.liveness.received(self.now)
        if end.session.closed:
            return
        try:
            end.session.receive_message(message, self.now)
        except PeerProtocolError as error:
            end.broke = error
            end.session.close(Code.PROTOCOL, str(error))
            self.peer_of(end).session.close(Code.SESSION_LOST, "the tunnel was lost")

    def settle(self) -> None:
        """Exchange messages until nobody has any."""
        busy = True
        while busy:
            busy = False
            for end in (self.agent, self.server):
                self.pull(end)
                while self.deliver(end):
                    busy = True
