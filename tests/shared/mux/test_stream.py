"""One stream's state table and queue, against a session that only notes calls.

Covered: every state with every input, writing and its limits, taking from the queue.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Code, InvalidState, PeerProtocolError, StreamReset
from shared.mux.counters import Counters
from shared.mux.stream import (
    QUEUE_HIGH_BYTES,
    QUEUE_HIGH_PIECES,
    QUEUE_LEAST_BYTES,
    QUEUE_LOW_BYTES,
    Input,
    State,
    Stream,
)
from shared.mux.windows import ReceiveWindow, SendWindow
from tests.fakes.session_pair import Recorder


class NotingSession:
    """Stands for the session: keeps the names of the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.counters = Counters()

    def stream_ready(self, stream: Stream) -> None:
        self.calls.append("ready")

    def stream_reset(self, stream: Stream, code: Code, reason: str) -> None:
        self.calls.append(f"reset {code.name}")

    def stream_accepted(self, stream: Stream) -> None:
        self.calls.append("accepted")

    def window_due(self, stream: Stream) -> None:
        self.calls.append("window")


def make() -> tuple[Stream, Recorder, list[str]]:
    session = NotingSession()
    stream = Stream(session, 2, "tcp/x", ReceiveWindow(100, 0.0), SendWindow(100))  # type: ignore[arg-type]
    recorder = Recorder(stream)
    stream.handler = recorder
    return stream, recorder, session.calls


ALLOWED = {
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


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Input)
def test_each_state_allows_what_the_table_says_and_no_more(
    state: State, event: Input
) -> None:
    stream, _, _ = make()
    stream.state = state
    if (state, event) in ALLOWED:
        stream.move(event)
        assert stream.state is ALLOWED[state, event]
    else:
        with pytest.raises(PeerProtocolError, match="stream 2"):
            stream.move(event)
        assert stream.state is state


@given(
    st.lists(st.binary(max_size=20), max_size=20),
    st.lists(st.integers(1, 50), max_size=40),
)
def test_the_queue_gives_back_what_was_written_in_any_portions(
    writes: list[bytes], portions: list[int]
) -> None:
    stream, _, _ = make()
    for number, data in enumerate(writes):
        stream.write(memoryview(data) if number % 2 else data)
    got: list[bytes | memoryview] = []
    for most in [*portions, 10_000]:
        before = sum(map(len, got))
        if stream.queue:
            assert stream.take_queued(most, got) == sum(map(len, got)) - before <= most
    assert b"".join(got) == b"".join(writes)
    assert stream.queued_bytes == 0 and not stream.queue


def test_a_writer_is_paused_above_the_mark_and_goes_on_below_the_other() -> None:
    stream, recorder, _ = make()
    stream.send_window.limit_offset = 2**20
    stream.write(bytes(QUEUE_HIGH_BYTES))
    assert not recorder.paused
    stream.write(b"x")
    assert recorder.paused
    stream.take_queued(QUEUE_HIGH_BYTES - QUEUE_LOW_BYTES, [])
    stream.drained()
    assert recorder.paused
    stream.take_queued(1, [])
    stream.drained()
    assert not recorder.paused and recorder.pauses == 1


def test_without_credit_a_writer_is_paused_early_and_little_is_asked_for() -> None:
    stream, recorder, _ = make()
    window = stream.send_window
    window.sent_offset = window.limit_offset
    stream.write(bytes(QUEUE_LEAST_BYTES - 1))
    assert not recorder.paused
    stream.write(b"x")
    assert recorder.paused
    assert stream.room_bytes == QUEUE_LEAST_BYTES
    window.limit_offset += 1
    window.sent_offset += stream.take_queued(1, [])
    stream.drained()
    assert not recorder.paused


@pytest.mark.parametrize(
    ("credit", "queued", "room"),
    [
        (2**30, 0, 2**30),
        (2**30, 1000, 2**30 - 1000),
        (100_000, 30_000, 70_000),
        (100_000, 99_000, QUEUE_LEAST_BYTES),
        (0, 0, QUEUE_LEAST_BYTES),
    ],
)
def test_room_is_what_credit_will_let_go(credit: int, queued: int, room: int) -> None:
    stream, _, _ = make()
    stream.send_window.limit_offset = stream.send_window.sent_offset + credit
    if queued:
        stream.write(bytes(queued))
    assert stream.room_bytes == room


def test_many_tiny_writes_pause_too_because_each_costs_memory() -> None:
    stream, recorder, _ = make()
    for _ in range(QUEUE_HIGH_PIECES + 1):
        stream.write(b"x")
    assert recorder.paused
    stream.take_queued(QUEUE_HIGH_PIECES // 2 + 1, [])
    stream.drained()
    assert not recorder.paused


def test_writing_after_write_eof_is_a_bug_and_empty_writes_are_nothing() -> None:
    stream, _, calls = make()
    stream.write(b"")
    assert calls == []
    stream.write_eof()
    stream.write_eof()
    assert calls == ["ready"]
    with pytest.raises(InvalidState):
        stream.write(b"x")


def test_a_reset_drops_the_queue_and_silences_the_handler() -> None:
    stream, recorder, calls = make()
    stream.write(b"x")
    stream.reset(Code.CANCELLED, "enough")
    stream.reset(Code.CANCELLED, "enough")
    stream.write(b"y")
    stream.write_eof()
    stream.accept()
    stream.lost(None)
    assert calls == ["ready", "reset CANCELLED"]
    assert stream.closed and stream.queued_bytes == 0
    assert recorder.ends == []


def test_a_lost_stream_tells_its_handler_once() -> None:
    stream, recorder, _ = make()
    error = StreamReset(Code.SESSION_LOST, "gone")
    stream.lost(error)
    stream.lost(None)
    assert recorder.ends == [error]


def test_accept_is_sent_once() -> None:
    stream, _, calls = make()
    stream.accept()
    stream.accept()
    assert calls == ["accepted"]


def test_credit_is_given_back_only_while_the_peer_may_still_send() -> None:
    stream, _, calls = make()
    stream.receive_window.received(0, 100)
    stream.taken(50)
    assert calls == ["window"]
    stream.move(Input.RECEIVE_EOF)
    stream.taken(50)
    assert calls == ["window"]


def test_a_repr_names_stream_target_and_state() -> None:
    assert repr(make()[0]) == "<Stream 2 tcp/x open>"
