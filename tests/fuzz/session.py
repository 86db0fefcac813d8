"""One session, and a peer who says anything: bytes, order, silence, resume greetings. SPEC 5 to 10.

The input is a script of the peer's: each entry a control byte (how much it reads of what we
send, whether time passes, whether the connection is lost before), two bytes of length, and a
message. Demanded: a PeerProtocolError or nothing, no handler told what it must not be told,
no stream forgotten at the end, and memory within the limits that have names.
"""

from collections.abc import Callable, Iterable

from shared.errors import Code, PeerProtocolError, StreamReset
from shared.mux.budget import DEFAULT_WINDOW_MEMORY_BYTES, WindowBudget
from shared.mux.outbox import MESSAGE_BYTES
from shared.mux.replay import MAX_ANSWER_BYTES
from shared.mux.session import Role, Session
from shared.mux.stream import QUEUE_HIGH_BYTES
from shared.wire.frames import encode_hello
from shared.wire.hello import Hello, read_hello
from tests.fakes.session_links import ResumingPair
from tests.fakes.session_pair import SESSION_ID, End, Recorder
from tests.fuzz.target import Source, Target
from tests.fuzz.wire import TARGETS as WIRE_TARGETS
from tests.fuzz.wire import conversation

__all__ = ["TARGETS", "check_end", "check_told", "script"]

# Of the process: one that is never reached, and one that is at once.
_BUDGETS = (DEFAULT_WINDOW_MEMORY_BYTES, 200_000)

# What one handler of ours writes at most in a run.
MAX_WRITTEN_BYTES = 2 * QUEUE_HIGH_BYTES


def check_end(end: End) -> None:
    """What holds of an end whatever its peer says."""
    assert not end.failures, end.failures
    session, replay = end.session, end.session.replay
    assert replay.acked_count <= replay.sent_count
    if not session.closed:
        assert replay.kept_count == replay.sent_count - replay.acked_count
    assert 0 <= session.budget.used_bytes <= session.budget.ceiling_bytes
    limit = replay.max_kept_bytes + MAX_ANSWER_BYTES + 2 * MESSAGE_BYTES
    assert replay.kept_bytes <= limit
    for stream in session.streams.values():
        sent, received = stream.send_window, stream.receive_window
        assert sent.received_offset <= sent.sent_offset <= sent.limit_offset
        assert received.taken_offset <= received.received_offset
        assert received.received_offset <= received.limit_offset
        assert stream.queued_bytes <= QUEUE_HIGH_BYTES + MAX_WRITTEN_BYTES


def check_told(end: End) -> None:
    """After the session's end: every handler that did not end its stream itself was told, once."""
    assert not end.session.streams and not end.session.wants_to_send
    assert not end.session.budget.used_bytes, "memory was not given back"
    for recorder in end.handlers.values():
        assert len(recorder.ends) == (0 if recorder.stream.id in end.was_reset else 1)


class _Owner(End):
    """Our side, with handlers that do what `habits` says."""

    def __init__(self, habits: int) -> None:
        super().__init__()
        self.habits = habits
        # Streams that our handlers reset: nobody is told of those.
        self.was_reset: set[int] = set()
        self.on_open = self._teach

    def session_ready(self, hello: Hello) -> None:
        super().session_ready(hello)
        if self.habits & 1:
            self._teach(self.open("tcp/fuzz"))

    def _teach(self, recorder: Recorder) -> None:
        habits = self.habits
        recorder.stalled = bool(habits & 2)
        if habits & 4:
            recorder.on_data = self._echo
            recorder.on_eof = lambda told: told.stream.write_eof()
        if habits & 8:
            recorder.stream.accept()
            recorder.stream.write(bytes(1000))
        if habits & 16:
            recorder.on_eof = self._reset
        if habits & 32:
            recorder.on_closed = lambda _: self._try_open()

    def _echo(self, recorder: Recorder) -> None:
        if not recorder.paused and not recorder.stream.eof_queued:
            recorder.stream.write(bytes(recorder.received[-1000:]))

    def _reset(self, recorder: Recorder) -> None:
        self.was_reset.add(recorder.stream.id)
        recorder.stream.reset(Code.CANCELLED, "fuzz")

    def _try_open(self) -> None:
        try:
            self._teach(self.open("tcp/again"))
        except StreamReset:
            pass  # drains, or is closed


def _run(data: bytes) -> None:
    source = Source(data)
    kind = source.number()
    owner = _Owner(source.number())
    role = Role.AGENT if kind & 1 else Role.SERVER
    window = (1, 100, 5_000, 262_144)[kind >> 1 & 3]
    ours = Hello(session_id=SESSION_ID, window_bytes=window, software="fuzz")
    now = 1000.0
    budget = WindowBudget(_BUDGETS[kind >> 3 & 1])
    session = owner.session = Session(role, ours, owner, now, budget=budget)
    while source and not session.closed:
        how = source.number()
        message = source.take(source.number(2))
        now += (0.0, 0.7, 1.6, 5.0)[how & 3]
        try:
            if how & 4 and session.peer is not None and not session.detached:
                session.detach()
            alive = session.detached or session.handle_timer(now)
            if session.detached:
                _greet(owner, message, now)
            elif alive:
                session.liveness.received(now)
                session.receive_message(message, now)
            else:
                session.close(Code.SESSION_LOST, "dead")
        except PeerProtocolError as error:
            assert str(error)
            session.close(Code.PROTOCOL, str(error))
        for _ in range((0, 1, 4, 100)[how >> 3 & 3]):
            if not session.wants_to_send:
                break
            session.data_to_send(now)
        if how & 32:
            for recorder in list(owner.handlers.values()):
                recorder.take(100)
        check_end(owner)
    session.close(Code.SESSION_LOST, "the end")
    check_end(owner)
    check_told(owner)


def _greet(owner: _Owner, message: bytes, now: float) -> None:
    """The first message of another connection, as the shell treats it."""
    session = owner.session
    before = session.replay.sent_count, session.replay.kept_count
    try:
        hello = read_hello(message)
        session.replay.check_resume(hello.received)
        session.attach(hello, owner, now)
    except PeerProtocolError:
        # An error of that connection only (SPEC 10): the session waits for the next.
        assert session.detached
        assert before == (session.replay.sent_count, session.replay.kept_count)


# Seeds


def script(kind: int, habits: int, entries: Iterable[tuple[int, bytes]]) -> bytes:
    """An input from what the peer does: a control byte and a message each."""
    said = (
        bytes((how,)) + len(message).to_bytes(2) + message for how, message in entries
    )
    return bytes((kind, habits)) + b"".join(said)


def _seeds() -> list[bytes]:
    whole = conversation()
    seeds = []
    for kind, peer in ((6, "agent"), (7, "server"), (14, "agent"), (15, "server")):
        entries = [(24, message) for speaker, message in whole if speaker == peer]
        seeds += [script(kind, habits, entries) for habits in (0, 0b1101, 0b111110)]
        # With windows of one byte and of a hundred, which such a peer overruns.
        seeds += [script(kind & 9 | size, 0, entries) for size in (0, 2)]
    return seeds + [_recorded(cut=cut) for cut in (False, True)]


def _recorded(*, cut: bool) -> bytes:
    """What a real agent said in a real session, with a resume in its middle if `cut`."""
    entries: list[tuple[int, bytes]] = []
    pair = _RecordedPair(entries.append)
    streams = [pair.agent.open("control"), pair.agent.open("tcp/a")]
    for number in range(3):
        for recorder in streams:
            recorder.stream.write(bytes(100 + number))
        pair.settle()
        if cut and number == 1:
            pair.cut()
    for recorder in streams:
        recorder.stream.write_eof()
    pair.settle()
    return script(6, 0b1100, entries)


class _RecordedPair(ResumingPair):
    """A pair that writes down what its server hears."""

    def __init__(self, note: Callable[[tuple[int, bytes]], None]) -> None:
        self._note = note
        super().__init__()

    def _arrives_at_server(self, link: object, message: bytes) -> None:
        is_first = self.server.session.detached or link is not self.link_of(self.server)
        self._note((24 | (4 if is_first and self.server.session.peer else 0), message))
        super()._arrives_at_server(link, message)  # type: ignore[arg-type]


_RESUME = encode_hello(
    Hello(session_id=SESSION_ID, window_bytes=9, software="", resume=True).encode()
)

TARGETS = (
    Target(
        name="session",
        run=_run,
        seeds=_seeds,
        words=(*WIRE_TARGETS[0].words, _RESUME),
        runs=6_000,
    ),
)
