"""Two session cores and a fake link: what users of a session can rely on.

Covered: HELLO, opening, one flight, half-close in both orders, resets and their races,
stalled readers, paused writers, GOAWAY, liveness, limits.
"""

import pytest

from shared.errors import Code, InvalidState, StreamReset
from shared.mux import session as session_module
from shared.mux import table as table_module
from shared.mux.session import MESSAGE_BYTES, Role, Session
from shared.mux.stream import QUEUE_HIGH_BYTES, State
from shared.mux.windows import INITIAL_WINDOW_BYTES
from shared.wire import frames
from shared.wire.frames import FrameType
from tests.fakes.session_pair import SESSION_ID, End, Recorder, SessionPair, hello


def opened(pair: SessionPair) -> tuple[Recorder, Recorder]:
    """A stream from the server to the agent: both ends of it."""
    near = pair.server.open()
    pair.settle()
    return near, pair.agent.handlers[near.stream.id]


def types(message: bytes) -> list[int]:
    return [found.type for found in frames.split(message)]


# HELLO


def test_the_agent_speaks_first_and_the_server_repeats_its_session_id() -> None:
    pair = SessionPair(shake_hands=False)
    assert not pair.server.session.wants_to_send
    pair.pull(pair.agent)
    pair.deliver(pair.agent)
    pair.pull(pair.server)
    pair.deliver(pair.server)
    assert pair.agent.session.peer is not None
    assert pair.agent.session.peer.session_id == SESSION_ID
    assert pair.agent.session.peer.resume is False
    assert pair.server.session.hello.session_id == SESSION_ID


def test_the_server_says_nothing_before_it_has_read_hello() -> None:
    pair = SessionPair(shake_hands=False)
    pair.server.session.go_away(Code.GOING_AWAY, "stopping")
    assert not pair.server.session.wants_to_send
    assert pair.server.session.data_to_send(pair.now) == b""
    pair.settle()
    assert pair.agent.ready_calls == 1 and pair.agent.broke is None
    assert [notice.reason for notice in pair.agent.notices] == ["stopping"]


def test_no_stream_can_be_opened_before_the_peers_hello() -> None:
    with pytest.raises(InvalidState):
        SessionPair(shake_hands=False).agent.session.open_stream("tcp/x")


# Opening


@pytest.mark.parametrize("side", ["agent", "server"])
def test_open_data_and_eof_travel_in_one_message(side: str) -> None:
    pair = SessionPair()
    end: End = getattr(pair, side)
    near = end.open("tcp/one")
    near.stream.write(b"GET ")
    near.stream.write(b"/")
    near.stream.write_eof()
    message = end.session.data_to_send(pair.now)
    assert types(message) == [FrameType.OPEN, FrameType.DATA, FrameType.EOF]
    pair.feed(pair.peer_of(end), message)
    far = pair.peer_of(end).handlers[near.stream.id]
    assert (far.stream.target, far.received, far.eofs) == ("tcp/one", b"GET /", 1)


def test_agents_use_odd_ids_and_servers_even_ones() -> None:
    pair = SessionPair()
    assert [pair.agent.open().stream.id for _ in range(3)] == [1, 3, 5]
    assert [pair.server.open().stream.id for _ in range(3)] == [2, 4, 6]


def test_an_accept_reaches_the_opener_once() -> None:
    pair = SessionPair()
    near, far = opened(pair)
    far.stream.accept()
    far.stream.accept()
    pair.settle()
    assert pair.server.accepted == [near.stream.id] and near.stream.accepted


def test_a_stream_reset_before_its_first_turn_is_never_announced() -> None:
    pair = SessionPair()
    near = pair.server.open()
    near.stream.write(b"never mind")
    near.stream.reset(Code.CANCELLED, "changed our mind")
    assert not pair.server.session.wants_to_send
    wakes = pair.server.wakes
    other = pair.server.open()
    assert pair.server.wakes > wakes, "a turn that came to nothing must not deafen us"
    pair.settle()
    assert list(pair.agent.handlers) == [other.stream.id]


def test_a_refused_open_is_a_reset_with_a_reason() -> None:
    pair = SessionPair()
    pair.agent.on_open = lambda far: far.stream.reset(Code.REFUSED, "not in the list")
    near, far = opened(pair)
    assert [str(end) for end in near.ends] == ["not in the list (refused)"]
    assert far.ends == []
    assert not pair.server.session.streams and not pair.agent.session.streams


def test_a_target_that_cannot_be_sent_is_refused_at_once() -> None:
    pair = SessionPair()
    with pytest.raises(ValueError):
        pair.server.session.open_stream("x" * 600)
    near, far = opened(pair)
    assert near.stream.id == 2 and far.stream.target == "tcp/echo"


def test_too_many_streams_are_refused_on_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table_module, "MAX_STREAMS", 3)
    pair = SessionPair()
    pair.agent.session.open_stream("control")  # the other direction has its own limit
    for _ in range(3):
        pair.server.open()
    with pytest.raises(StreamReset, match="limit"):
        pair.server.open()
    pair.settle()
    monkeypatch.setattr(table_module, "MAX_STREAMS", 4)
    near = pair.server.open()
    pair.pull(pair.server)
    monkeypatch.setattr(table_module, "MAX_STREAMS", 3)
    pair.settle()
    (end,) = near.ends
    assert end is not None and end.code is Code.LIMIT
    pair.server.handlers[2].stream.reset(Code.OK, "")
    pair.settle()
    again = pair.server.open()
    pair.settle()
    assert again.ends == []


# Half-close and resets


@pytest.mark.parametrize("first", ["opener", "acceptor", "both at once"])
def test_each_direction_ends_by_itself(first: str) -> None:
    pair = SessionPair()
    near, far = opened(pair)
    one, two = (near, far) if first != "acceptor" else (far, near)
    one.stream.write(b"question")
    one.stream.write_eof()
    if first != "both at once":
        pair.settle()
        assert (two.received, two.eofs, two.ends) == (b"question", 1, [])
        assert one.stream.state is State.LOCAL_CLOSED
    two.stream.write(b"answer")
    two.stream.write_eof()
    pair.settle()
    assert (one.received, one.eofs, one.ends) == (b"answer", 1, [None])
    assert (two.received, two.eofs, two.ends) == (b"question", 1, [None])
    assert not pair.server.session.streams and not pair.agent.session.streams


def test_the_eof_waits_for_the_data_before_it() -> None:
    pair = SessionPair()
    near, far = opened(pair)
    far.stalled = True
    near.stream.write(bytes(INITIAL_WINDOW_BYTES + 10))
    near.stream.write_eof()
    pair.settle()
    assert (len(far.received), far.eofs) == (INITIAL_WINDOW_BYTES, 0)
    far.stalled = False
    far.take()
    pair.settle()
    assert (len(far.received), far.eofs) == (INITIAL_WINDOW_BYTES + 10, 1)


def test_resets_that_cross_tell_nobody_twice() -> None:
    pair = SessionPair()
    near, far = opened(pair)
    near.stream.reset(Code.CANCELLED, "one")
    far.stream.reset(Code.CANCELLED, "two")
    pair.settle()
    assert near.ends == far.ends == []
    assert pair.agent.broke is None and pair.server.broke is None


def test_what_is_under_way_to_a_closed_stream_is_skipped() -> None:
    pair = SessionPair()
    near, far = opened(pair)
    far.stalled = True
    far.stream.write(b"late data")
    far.stream.write_eof()
    near.stream.write(bytes(200_000))
    pair.pull(pair.agent)
    pair.pull(pair.server)
    near.stream.reset(Code.CANCELLED, "not waiting")
    pair.settle()
    assert (near.received, near.ends) == (b"", [])
    assert [end and end.reason for end in far.ends] == ["not waiting"]
    assert pair.server.broke is None and pair.agent.broke is None
    far.take()
    assert not pair.agent.session.wants_to_send


def test_a_reset_overtakes_the_data_that_it_makes_useless() -> None:
    pair = SessionPair()
    near, far = opened(pair)
    near.stream.write(bytes(200_000))
    near.stream.reset(Code.CANCELLED, "stop")
    pair.settle()
    assert far.received == b"" and len(far.ends) == 1


# Flow control and fairness


def test_a_stalled_reader_stalls_its_own_writer_only() -> None:
    pair = SessionPair()
    (slow, slow_far), (quick, quick_far) = opened(pair), opened(pair)
    slow_far.stalled = True
    for _ in range(8):
        slow.stream.write(bytes(100_000))
        quick.stream.write(bytes(100_000))
        pair.settle()
    assert slow.paused and not quick.paused
    assert len(slow_far.received) == INITIAL_WINDOW_BYTES
    assert len(quick_far.received) == 800_000
    slow_far.stalled = False
    slow_far.take()
    pair.settle()
    assert len(slow_far.received) == 800_000 and not slow.paused


def test_a_writer_that_honours_pause_holds_a_bounded_queue() -> None:
    """Nothing leaves (the transport is full): the queue stops a little above the mark."""
    pair = SessionPair()
    near, _ = opened(pair)
    written = 0
    while not near.paused:
        near.stream.write(bytes(10_000))
        written += 10_000
    assert written <= QUEUE_HIGH_BYTES + 10_000


def test_a_small_stream_overtakes_bulk_by_all_but_one_turn_each() -> None:
    pair = SessionPair()
    bulk = [opened(pair)[0] for _ in range(8)]
    small, small_far = opened(pair)
    for near in bulk:
        near.stream.write(bytes(200_000))
    pair.server.session.in_flight.limit_bytes = 2**30  # nobody acknowledges in here
    pair.pull(pair.server, max_messages=2)  # bulk is under way
    pair.server.outgoing.clear()  # what went before does not count
    small.stream.write(b"hello")
    bulk_bytes = 0
    while True:
        message = pair.server.session.data_to_send(pair.now)
        ours = [f for f in frames.split(message) if f.stream_id == small.stream.id]
        limit = ours[0].start if ours else len(message)
        bulk_bytes += limit
        if ours:
            break
    assert bulk_bytes <= 8 * (16 * 1024 + 17) + MESSAGE_BYTES // 16
    assert small_far.received == b""


def test_many_tiny_writes_make_one_frame_and_no_message_over_the_limit() -> None:
    pair = SessionPair()
    near, far = opened(pair)
    for number in range(30_000):
        near.stream.write(bytes([number % 251]))
    message = pair.server.session.data_to_send(pair.now)
    assert types(message) == [FrameType.DATA]
    pair.feed(pair.agent, message)
    assert far.received == bytes(number % 251 for number in range(30_000))


@pytest.mark.parametrize("streams", [1, 5, 40])
def test_messages_stay_near_their_size(streams: int) -> None:
    pair = SessionPair()
    for _ in range(streams):
        near = pair.server.open("tcp/" + "x" * 500)
        near.stream.write(bytes(100_000))
    pair.server.session.in_flight.limit_bytes = 2**30  # nobody acknowledges in here
    while message := pair.server.session.data_to_send(pair.now):
        assert len(message) <= MESSAGE_BYTES + 1024


def test_small_pieces_of_a_large_message_do_not_keep_it_alive() -> None:
    pair = SessionPair()
    kept: list[bytes | memoryview] = []
    (one, one_far), (two, two_far) = opened(pair), opened(pair)
    for far in (one_far, two_far):
        far.data_received = kept.append  # type: ignore[method-assign]
    one.stream.write(bytes(40_000))
    two.stream.write(bytes(10_000))
    pair.settle()
    for data in kept:
        held = data.nbytes if isinstance(data, memoryview) else len(data)
        whole = len(data.obj) if isinstance(data, memoryview) else held
        assert whole <= 2 * held


# GOAWAY and the end


def test_after_go_away_running_streams_finish_and_no_new_ones_are_opened() -> None:
    pair = SessionPair()
    near, far = opened(pair)
    pair.agent.session.go_away(Code.GOING_AWAY, "upgrade", retry_after_seconds=2.5)
    pair.agent.session.go_away(Code.GOING_AWAY, "again")
    pair.settle()
    (notice,) = pair.server.notices
    assert (notice.code, notice.retry_after_seconds, notice.reason) == (
        Code.GOING_AWAY,
        2.5,
        "upgrade",
    )
    for end in (pair.agent, pair.server):
        with pytest.raises(StreamReset, match="no new streams"):
            end.open()
    near.stream.write(b"still here")
    near.stream.write_eof()
    far.stream.write_eof()
    pair.settle()
    assert (far.received, far.ends, near.ends) == (b"still here", [None], [None])


def test_a_stream_that_crosses_a_go_away_is_taken() -> None:
    """Nobody is turned away who comes at this moment; who comes later broke the rules."""
    pair = SessionPair()
    crossing = pair.server.open()
    pair.pull(pair.server)
    session = pair.agent.session
    session.go_away(Code.GOING_AWAY, "upgrade")
    assert not session.is_spent, "one may be under way"
    pair.settle()
    assert not crossing.ends and not session.is_spent
    crossing.stream.write(b"served")
    crossing.stream.write_eof()
    far = pair.agent.handlers[crossing.stream.id]
    pair.settle()
    far.stream.write_eof()
    pair.settle()
    assert (far.received, crossing.ends) == (b"served", [None])
    assert session.is_spent
    pair.feed(pair.agent, frames.encode_open(100, 1000, "tcp/late"))
    assert FrameType.RESET in types(session.data_to_send(pair.now))


def test_the_answer_to_an_older_ping_is_no_answer_to_the_goodbye() -> None:
    pair = SessionPair()
    session = pair.agent.session
    session.handle_timer(pair.now)  # a PING
    pair.pull(pair.agent)
    session.go_away(Code.GOING_AWAY, "upgrade")
    pair.deliver(pair.agent)
    pair.pull(pair.server)
    pair.deliver(pair.server)
    assert session.liveness.round_trip_seconds is not None
    assert not session.is_spent
    pair.settle()
    assert session.is_spent


def test_a_session_of_reports_only_is_spent() -> None:
    pair = SessionPair()
    pair.agent.open("control")
    pair.settle()
    assert not pair.server.session.is_spent, "it does not drain"
    pair.server.session.go_away(Code.GOING_AWAY, "upgrade")
    assert pair.server.session.is_spent
    pair.settle()
    assert pair.agent.session.is_spent, "the server said that it opens nothing more"


def test_streams_that_are_reset_together_tell_both_ends_why() -> None:
    pair = SessionPair()
    near, far = opened(pair)
    control = pair.agent.open("control")
    far.stream.write(bytes(100_000))
    pair.settle()
    session = pair.agent.session
    assert session.reset_streams(Code.GOING_AWAY, "the agent stops") == 1
    pair.settle()
    for told in (near, far, control):
        assert [str(end) for end in told.ends] == ["the agent stops (going_away)"]
    assert not session.streams and not pair.server.session.streams
    assert session.counters.resets_sent[Code.GOING_AWAY] == 2


def test_streams_are_asked_to_wind_down_and_a_bug_there_is_the_streams_own() -> None:
    pair = SessionPair()
    (_, patient), (near, buggy) = opened(pair), opened(pair)
    asked: list[Recorder] = []
    patient.wind_down = lambda: asked.append(patient)  # type: ignore[attr-defined]
    buggy.wind_down = lambda: 1 / 0  # type: ignore[attr-defined]
    pair.agent.session.wind_down()
    pair.server.session.wind_down()  # its handlers do not know how
    pair.settle()
    assert asked == [patient]
    assert [end and end.code for end in near.ends] == [Code.INTERNAL]


def test_closing_a_session_tells_every_stream_once() -> None:
    pair = SessionPair()
    ends = [*opened(pair), *opened(pair)]
    pair.server.session.close(Code.SESSION_LOST, "the tunnel was lost")
    pair.server.session.close(Code.SESSION_LOST, "twice")
    near = [recorder.ends for recorder in ends[::2]]
    assert [[str(end) for end in told] for told in near] == 2 * [
        ["the tunnel was lost (session_lost)"]
    ]
    assert not pair.server.session.wants_to_send
    with pytest.raises(StreamReset, match="closed"):
        pair.server.open()


# Liveness


def tick(pair: SessionPair, seconds: float, step: float = 0.1) -> dict[str, int]:
    """Let time pass on a link without delay; returns how many PINGs each end sent."""
    pings = {"agent": 0, "server": 0}
    for _ in range(round(seconds / step)):
        pair.sleep(step)
        for name in pings:
            end: End = getattr(pair, name)
            if end.session.next_timer() <= pair.now:
                assert end.session.handle_timer(pair.now)
            pair.pull(end)
            pings[name] += sum(types(m).count(FrameType.PING) for m in end.outgoing)
            while pair.deliver(end):
                pass
    return pings


def test_on_an_idle_link_one_end_asks_and_both_know_the_round_trip() -> None:
    pair = SessionPair()
    tick(pair, 5.0)
    pings = tick(pair, 60.0)
    assert 27 <= pings["agent"] <= 30, "every 2 s"
    assert 1 <= pings["server"] <= 2, "every 30 s"
    for end in (pair.agent, pair.server):
        assert end.session.liveness.round_trip_seconds is not None


def test_on_a_busy_link_both_ends_measure_every_five_seconds() -> None:
    pair = SessionPair()
    near, _ = opened(pair)
    pings = {"agent": 0, "server": 0}
    for _ in range(600):
        near.stream.write(bytes(1000))
        for name, count in tick(pair, 0.1).items():
            pings[name] += count
    assert 11 <= pings["agent"] <= 14 and 11 <= pings["server"] <= 14


def test_each_side_asks_at_once_and_learns_the_round_trip() -> None:
    pair = SessionPair()
    for end in (pair.agent, pair.server):
        assert end.session.next_timer() <= pair.now
        assert end.session.handle_timer(pair.now)
        pair.pull(end)
    pair.sleep(0.04)
    pair.settle()
    for end in (pair.agent, pair.server):
        assert end.session.liveness.round_trip_seconds == pytest.approx(0.04)


def test_a_silent_peer_is_dead_after_four_and_a_half_seconds() -> None:
    pair = SessionPair()
    pair.server.session.handle_timer(pair.now)
    pair.settle()
    start = pair.now
    while True:
        pair.now = pair.server.session.next_timer()
        if not pair.server.session.handle_timer(pair.now):
            break
    assert pair.now - start == pytest.approx(4.5)


def test_pings_keep_an_idle_session_alive() -> None:
    pair, start = SessionPair(), 1000.0
    while pair.now < start + 60:
        pair.now = min(
            pair.agent.session.next_timer(), pair.server.session.next_timer()
        )
        for end in (pair.agent, pair.server):
            assert end.session.handle_timer(pair.now)
        pair.settle()
        pair.sleep(0.001)


def test_only_the_newest_ping_is_answered_when_nobody_reads() -> None:
    pair = SessionPair()
    for number in range(1, 1001):
        pair.feed(pair.server, frames.encode_ping(number))
    message = pair.server.session.data_to_send(pair.now)
    assert message == frames.encode_ack(1000) + frames.encode_pong(1000)


def test_an_ack_that_is_asked_for_comes_at_once() -> None:
    pair = SessionPair()
    near, _ = opened(pair)
    in_flight = pair.server.session.in_flight
    in_flight.limit_bytes = 64 * 1024
    pair.server.session._outbox.fit(in_flight.limit_bytes, 0.0)
    near.stream.send_window.limit_offset = 2**30
    near.stream.write(bytes(60_000))
    pair.pull(pair.server)
    assert in_flight.bytes > 60_000
    while pair.deliver(pair.server):
        pair.pull(pair.agent)
    while pair.deliver(pair.agent):
        pass
    assert in_flight.bytes < 16_400


def full_path() -> tuple[SessionPair, Recorder]:
    """A server that has more to send than may be under way."""
    pair = SessionPair()
    near, far = opened(pair)
    pair.agent.session.streams[near.stream.id].receive_window.limit_offset = 2**30
    near.stream.send_window.limit_offset = 2**30
    near.stream.write(bytes(3_000_000))
    pair.pull(pair.server)
    assert pair.server.session.awaits_ack and not pair.server.session.wants_to_send
    return pair, far


def test_a_full_path_takes_what_is_urgent_and_is_filled_again_by_acks() -> None:
    pair, far = full_path()
    pair.server.session.go_away(Code.GOING_AWAY, "urgent all the same")
    assert pair.server.session.wants_to_send
    pair.settle()
    assert len(far.received) == 3_000_000


def test_an_ack_wakes_who_waits_for_it() -> None:
    pair, _ = full_path()
    wakes, sent = pair.server.wakes, pair.server.session.replay.sent_count
    pair.feed(pair.server, frames.encode_ack(sent - 1))
    assert pair.server.wakes > wakes


def test_a_peer_that_asks_without_reading_answers_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "MAX_WAITING_ANSWERS", 50)
    pair = SessionPair()
    pair.agent.on_open = lambda far: far.stream.reset(Code.REFUSED, "no")
    for stream_id in range(2, 200, 2):
        pair.feed(pair.agent, frames.encode_open(stream_id, 0, "tcp/x"))
    assert pair.agent.broke is not None and "need answers" in str(pair.agent.broke)


def test_the_session_keeps_nothing_of_ten_thousand_finished_streams() -> None:
    pair = SessionPair()
    for number in range(10_000):
        near = pair.server.open()
        near.stream.write(b"x")
        if number % 3 == 0:
            pair.settle()
        if number % 2:
            near.stream.reset(Code.CANCELLED, "")
        else:
            near.stream.write_eof()
            pair.settle()
            pair.agent.handlers[near.stream.id].stream.write_eof()
    pair.settle()
    for end in (pair.agent, pair.server):
        assert not end.session.streams and not end.session.wants_to_send
        assert end.session._table.peer_count == 0


def test_the_role_alone_tells_the_two_ends_apart() -> None:
    end = End()
    end.session = Session(Role.AGENT, hello(), end, 0.0)
    assert types(end.session.data_to_send(0.0)) == [FrameType.HELLO]


@pytest.mark.parametrize(("seconds", "size"), [(0.0005, 1), (0.1, 3)])
def test_windows_grow_quickly_only_where_round_trips_cost_time(
    seconds: float, size: float
) -> None:
    """What a reader takes first proves more where the proof was dear."""
    pair = SessionPair()
    for end in (pair.agent, pair.server):
        assert end.session.handle_timer(pair.now)
        pair.pull(end)
    pair.sleep(seconds)
    pair.settle()
    near, far = opened(pair)
    for _ in range(2):
        near.stream.write(bytes(INITIAL_WINDOW_BYTES))
        pair.settle()
    assert far.stream.receive_window.size_bytes >= size * INITIAL_WINDOW_BYTES
    if size == 1:
        assert far.stream.receive_window.size_bytes == INITIAL_WINDOW_BYTES
