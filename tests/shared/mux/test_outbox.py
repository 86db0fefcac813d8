"""The order in which frames leave, and what is forgotten with a stream.

Covered: windows first, then control, then turns; room in a message; resets in the middle
of a long ring; late windows merged; who is interactive, by what it sends and not for ever, and that
neither class starves the other.
"""

import time

from shared.mux.counters import Counters
from shared.mux.outbox import (
    BULK_SHARE,
    INTERACTIVE_BYTES,
    INTERACTIVE_BYTES_PER_SECOND,
    MAX_TURN_BYTES,
    MESSAGE_BYTES,
    TURN_BYTES,
    Outbox,
)
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

    def bulk(self, *stream_ids: int, count: int = 10**6) -> list[Stream]:
        """Streams that have sent much, and have as much again waiting."""
        streams = [self.stream(stream_id) for stream_id in stream_ids]
        for stream in streams:
            stream.spent_bytes, stream.spent_at = 100 * INTERACTIVE_BYTES, 1.0
            stream.write(bytes(count))
        return streams

    def sent(
        self, now: float = 1.0, data_bytes: int = MESSAGE_BYTES
    ) -> list[tuple[int, int, int]]:
        """The next message as (type, stream, payload length)."""
        message = self.outbox.next_message(now, 0.0, data_bytes=data_bytes)
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
    session.bulk(2, 4, 6)
    first = session.sent()
    assert [stream_id for _, stream_id, _ in first[:4]] == [2, 4, 6, 2]
    assert {size - 8 for _, _, size in first[:-1]} == {TURN_BYTES}
    assert sum(size for _, _, size in first) <= MESSAGE_BYTES
    lonely = OutboxSession()
    lonely.stream(2).write(bytes(200_000))
    assert lonely.sent() == [(FrameType.DATA, 2, MESSAGE_BYTES + 8)]


def test_a_turn_that_the_message_cuts_short_goes_on_in_the_next_one() -> None:
    """Else the streams that stand at the ends of messages would get less for ever."""
    for stream_ids in ((2, 4), (2, 4, 6), (2, 4, 6, 8)):
        session = OutboxSession()
        session.bulk(*stream_ids)
        sent = dict.fromkeys(stream_ids, 0)
        for _ in range(80):
            for _, stream_id, size in session.sent(data_bytes=23_000):
                sent[stream_id] += size - 8
        assert max(sent.values()) - min(sent.values()) <= TURN_BYTES
        assert min(sent.values()) > 20 * TURN_BYTES


def test_who_sends_little_goes_before_bulk() -> None:
    session = OutboxSession()
    session.bulk(2, 4, 6)
    small = session.stream(8)
    for number in range(40):
        small.write(bytes(1000))
        first, *_ = session.sent(1.0 + number / 100)
        assert first == (FrameType.DATA, 8, 1008)


def test_a_label_is_worth_nothing_and_neither_is_being_new() -> None:
    session = OutboxSession()
    session.bulk(2)
    new = session.stream(4)
    new.write(bytes(10**6))
    sent = dict.fromkeys((2, 4), 0)
    for number in range(10):
        for _, stream_id, size in session.sent(1.0 + number / 1000):
            sent[stream_id] += size
    assert 0 < sent[4] - sent[2] <= INTERACTIVE_BYTES + 2 * TURN_BYTES


def test_what_was_sent_long_ago_is_forgotten() -> None:
    session = OutboxSession()
    session.bulk(2)
    stream = session.stream(4)
    stream.spent_bytes, stream.spent_at = INTERACTIVE_BYTES * 3, 1.0
    session.sent(1.0 + 1.9 * INTERACTIVE_BYTES / INTERACTIVE_BYTES_PER_SECOND)
    stream.write(b"late")
    assert [stream_id for _, stream_id, _ in session.sent(1.6)][0] == 2
    session.outbox.forget(stream)
    session.sent(1.0 + 2.1 * INTERACTIVE_BYTES / INTERACTIVE_BYTES_PER_SECOND)
    stream.queue.clear()
    stream.write(b"later")
    assert session.sent(1.6)[0][1] == 4


def test_who_needs_less_than_a_turn_is_no_bulk_any_more() -> None:
    session = OutboxSession()
    busy, modest = session.bulk(2, 4, count=0)
    busy.write(bytes(10**6))
    modest.write(bytes(5000))
    assert [stream_id for _, stream_id, _ in session.sent()][:2] == [2, 4]
    modest.write(bytes(5000))
    assert session.sent()[0] == (FrameType.DATA, 4, 5008)


def test_many_small_streams_do_not_starve_a_large_one() -> None:
    session = OutboxSession()
    session.bulk(2)
    for stream_id in range(4, 400, 2):
        session.stream(stream_id).write(bytes(1000))
    for _ in range(3):
        of_bulk = sum(size for _, stream_id, size in session.sent() if stream_id == 2)
        assert of_bulk >= MESSAGE_BYTES // BULK_SHARE - 1100


def test_messages_and_turns_are_as_long_as_the_path_is_fast() -> None:
    session = OutboxSession()
    session.bulk(2, 4)

    def sizes(limit_bytes: int, rate: float) -> list[int]:
        session.outbox.fit(limit_bytes, rate)
        return [size - 8 for _, _, size in session.sent()]

    assert sizes(10**6, 10**6) == [TURN_BYTES]
    assert sizes(2**30, 20 * 10**6)[0] == 20_000 and sum(sizes(2**30, 2e7)) < 41_000
    assert sizes(2**30, 10**9)[:1] == [MAX_TURN_BYTES]
    assert MESSAGE_BYTES - 100 < sum(sizes(2**30, 10**9)) <= MESSAGE_BYTES
    alone = OutboxSession()
    alone.bulk(2)
    alone.outbox.fit(256 * 1024, 10**9)
    assert alone.sent() == [(FrameType.DATA, 2, 32 * 1024 + 8)]
    assert sum(size for _, _, size in session.sent(data_bytes=10_000)) <= 10_008


def test_a_question_for_an_ack_does_not_hide_a_ping_that_is_waited_for() -> None:
    session = OutboxSession()
    session.outbox.pong(6)
    session.outbox.pong(7)
    session.outbox.pong(0)
    assert session.outbox.has_urgent
    message = session.outbox.next_message(1.0, 0.0)
    assert message == frames.encode_pong(7) + frames.encode_pong(0)
    assert not session.outbox


def test_a_question_for_an_ack_rides_in_front() -> None:
    session = OutboxSession()
    session.stream(2).write(b"data")
    message = session.outbox.next_message(1.0, 0.0, ack=7, asks=True)
    kinds = [frame.type for frame in frames.split(message)]
    assert kinds == [FrameType.ACK, FrameType.PING, FrameType.DATA]


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
