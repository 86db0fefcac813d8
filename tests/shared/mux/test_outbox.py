"""The order in which frames leave, and what is forgotten with a stream.

Covered: windows first, then control, then turns; room in a message; resets in the middle
of a long ring; late windows merged.
"""

import time

from shared.mux.counters import Counters
from shared.mux.outbox import MESSAGE_BYTES, TURN_BYTES, Outbox
from shared.mux.stream import Stream
from shared.mux.windows import ReceiveWindow, SendWindow
from shared.wire import frames
from shared.wire.frames import FrameType


class OutboxSession:
    """The part of a session that a stream calls when it is written to."""

    def __init__(self) -> None:
        self.wakes = 0
        self.counters = Counters()
        self.turns: list[int] = []
        self.outbox = Outbox(self._wake, lambda stream: self.turns.append(stream.id))

    def _wake(self) -> None:
        self.wakes += 1

    def stream(self, stream_id: int, *, credit: int = 10**9) -> Stream:
        window = ReceiveWindow(1000, 0.0)
        return Stream(self, stream_id, "tcp/x", window, SendWindow(credit))  # type: ignore[arg-type]

    def stream_ready(self, stream: Stream) -> None:
        self.outbox.stream_ready(stream)

    def sent(self) -> list[tuple[int, int, int]]:
        """The next message as (type, stream, payload length)."""
        message = self.outbox.next_message(1.0, 0.0)
        return [(f.type, f.stream_id, f.end - f.start) for f in frames.split(message)]


def test_windows_go_first_then_answers_then_data() -> None:
    session = OutboxSession()
    stream = session.stream(2)
    stream.write(b"data")
    session.outbox.control(frames.encode_ping(1))
    session.outbox.pong(7)
    stream.receive_window.received(0, 600)
    stream.receive_window.taken(600)
    session.outbox.window_due(stream)
    session.outbox.window_due(stream)
    assert [type_ for type_, _, _ in session.sent()] == [
        FrameType.WINDOW,
        FrameType.PONG,
        FrameType.PING,
        FrameType.DATA,
    ]
    assert not session.outbox and session.outbox.next_message(1.0, 0.0) == b""


def test_streams_take_turns_and_a_lonely_one_fills_the_message() -> None:
    session = OutboxSession()
    streams = [session.stream(number) for number in (2, 4, 6)]
    for stream in streams:
        stream.write(bytes(MESSAGE_BYTES))
    first = session.sent()
    assert [stream_id for _, stream_id, _ in first[:4]] == [2, 4, 6, 2]
    assert {size - 8 for _, _, size in first[:-1]} == {TURN_BYTES}
    lonely = OutboxSession()
    lonely.stream(2).write(bytes(200_000))
    assert lonely.sent() == [(FrameType.DATA, 2, MESSAGE_BYTES + 8)]


def test_a_stream_without_credit_waits_outside_the_ring() -> None:
    session = OutboxSession()
    stream = session.stream(2, credit=10)
    stream.write(bytes(30))
    assert session.sent() == [(FrameType.DATA, 2, 18)]
    assert not session.outbox
    stream.send_window.update(10, 30)
    session.outbox.stream_ready(stream)
    assert session.sent() == [(FrameType.DATA, 2, 28)]


def test_an_open_leaves_even_without_credit() -> None:
    session = OutboxSession()
    stream = session.stream(2, credit=0)
    stream.write(b"waits")
    session.outbox.announce(stream, frames.encode_open(2, 1000, "tcp/x"))
    assert session.sent() == [(FrameType.OPEN, 2, 13)]
    assert not session.outbox


def test_control_frames_that_do_not_fit_leave_with_the_next_message() -> None:
    session = OutboxSession()
    ping = frames.encode_ping(1)
    for _ in range(MESSAGE_BYTES // len(ping) * 2):
        session.outbox.control(ping)
    assert len(session.outbox.next_message(1.0, 0.0)) < MESSAGE_BYTES + len(ping)
    assert session.outbox


def test_a_forgotten_stream_sends_nothing_and_is_known_by_its_announcement() -> None:
    session = OutboxSession()
    known, unknown = session.stream(2), session.stream(4)
    known.write(b"x")
    session.outbox.window_due(known)
    session.outbox.announce(unknown, frames.encode_open(4, 0, "tcp/x"))
    assert session.outbox.forget(known) is True
    assert session.outbox.forget(unknown) is False
    assert not session.outbox


def test_forgetting_ten_thousand_waiting_streams_takes_no_search() -> None:
    """All callers of a blocked tunnel give up at once; a search each took seconds."""
    session = OutboxSession()
    streams = [session.stream(number) for number in range(2, 20_002, 2)]
    for stream in streams:
        stream.write(b"x")
    started = time.process_time()
    for stream in reversed(streams):
        session.outbox.forget(stream)
    assert time.process_time() - started < 0.5
    assert not session.outbox
