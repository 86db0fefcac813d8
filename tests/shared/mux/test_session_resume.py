"""Sessions that go on over another connection: what may be lost, late, doubled or wrong.

Covered: messages lost on the way in each direction, half-closed streams, resets and opens
under way, stalled readers, dials that overtake each other, wrong counts, declined resumes,
the mark beyond which data waits, old answers that are repeated, and misuse.
"""

from dataclasses import replace

import pytest

from shared.errors import Code, InvalidState, PeerProtocolError, StreamReset
from shared.mux import replay as replay_module
from shared.mux.replay import ACK_AFTER_BYTES
from shared.mux.session import MESSAGE_BYTES, Role, Session
from shared.wire import frames
from shared.wire.frames import FrameType
from tests.fakes.session_links import ResumingPair, Wire
from tests.fakes.session_pair import End, Recorder, SessionPair, hello


def types(message: bytes) -> list[int]:
    return [found.type for found in frames.split(message)]


def opened(pair: SessionPair) -> tuple[Recorder, Recorder]:
    near = pair.server.open()
    pair.settle()
    return near, pair.agent.handlers[near.stream.id]


def healthy(pair: ResumingPair) -> None:
    for end in (pair.agent, pair.server):
        assert end.broke is None and not end.failures


@pytest.mark.parametrize("arrived", range(4))
def test_what_was_on_the_way_arrives_over_the_next_connection(arrived: int) -> None:
    pair = ResumingPair()
    near, far = opened(pair)
    for number in range(3):
        near.stream.write(b"down %d " % number)
        far.stream.write(b"up %d " % number)
        pair.pull(pair.server)
        pair.pull(pair.agent)
    pair.cut(keep_to_agent=arrived, keep_to_server=3 - arrived)
    for _ in range(3):
        pair.deliver(pair.server)
        pair.deliver(pair.agent)
    near.stream.write(b"in between")
    pair.settle()
    assert far.received == b"down 0 down 1 down 2 in between"
    assert near.received == b"up 0 up 1 up 2 "
    assert pair.resumes == 1
    healthy(pair)


def test_a_half_closed_stream_stays_so_and_ends_well() -> None:
    pair = ResumingPair()
    near, far = opened(pair)
    near.stream.write(b"question")
    near.stream.write_eof()
    pair.pull(pair.server)
    pair.cut()
    pair.settle()
    assert (far.received, far.eofs, far.ends) == (b"question", 1, [])
    far.stream.write(b"answer")
    pair.pull(pair.agent)
    pair.cut()
    far.stream.write_eof()
    pair.settle()
    assert (near.received, near.ends, far.ends) == (b"answer", [None], [None])
    healthy(pair)


def test_resets_and_opens_on_the_way_are_not_lost() -> None:
    pair = ResumingPair()
    near, far = opened(pair)
    gone, _ = opened(pair)
    gone.stream.reset(Code.CANCELLED, "never mind")
    pair.pull(pair.server)
    late = pair.server.open()
    late.stream.write(b"hello")
    pair.pull(pair.server)
    pair.cut()
    waiting = pair.server.open()  # opened while there is no connection
    pair.lose(pair.server)
    waiting.stream.write(b"me too")
    far.stream.reset(Code.LIMIT, "enough")
    pair.settle()
    other = pair.agent.handlers
    assert [str(end) for end in other[gone.stream.id].ends] == [
        str(StreamReset(Code.CANCELLED, "never mind"))
    ]
    assert other[late.stream.id].received == b"hello"
    assert other[waiting.stream.id].received == b"me too"
    assert [end and end.code for end in near.ends] == [Code.LIMIT]
    healthy(pair)


def test_a_stalled_reader_is_still_stalled_and_loses_nothing() -> None:
    pair = ResumingPair(agent_window=1000)
    pair.agent.on_open = lambda recorder: setattr(recorder, "stalled", True)
    near, far = opened(pair)
    near.stream.write(bytes(2000))
    pair.pull(pair.server)
    pair.cut()
    pair.settle()
    assert len(far.received) == 1000
    far.take()
    pair.pull(pair.agent)  # its WINDOW is lost on the way
    pair.cut()
    pair.settle()
    assert len(far.received) == 2000


def test_nothing_goes_out_while_there_is_no_connection() -> None:
    pair = ResumingPair()
    near, _ = opened(pair)
    pair.lose(pair.server)
    near.stream.write(b"x")
    near.stream.accept()
    assert not pair.server.session.wants_to_send
    assert pair.server.session.data_to_send(pair.now) == b""


def test_hello_comes_first_then_what_is_missing_then_what_is_new() -> None:
    pair = ResumingPair()
    near, _ = opened(pair)
    near.stream.write(b"old")
    pair.pull(pair.server)
    lost = pair.server.outgoing[-1]
    pair.cut()
    pair.notice(pair.agent)
    pair.lose(pair.server)
    near.stream.write(b"new")
    pair.dial()
    pair.deliver(pair.agent)
    messages = []
    while message := pair.server.session.data_to_send(pair.now):
        messages.append(message)
    assert [types(message)[0] for message in messages[:1]] == [FrameType.HELLO]
    assert messages[1] == lost, "word for word"
    assert FrameType.DATA in types(messages[2]) and len(messages) == 3


# Dials that overtake each other


def test_a_dial_that_was_overtaken_does_no_harm_when_it_arrives() -> None:
    pair = ResumingPair()
    near, far = opened(pair)
    pair.cut()
    pair.notice(pair.agent)
    pair.dial()
    late = pair.links[-1]
    pair.dial()
    held, late.to_server = late.to_server, Wire(pair, 0.0)
    pair.settle()
    near.stream.write(b"x" * 2 * ACK_AFTER_BYTES)  # ... which the agent acknowledges
    pair.settle()
    late.to_server = held
    pair.settle()
    assert pair.refusals == 1 and not pair.server.session.detached
    near.stream.write(b"y")
    pair.settle()
    assert len(far.received) == 2 * ACK_AFTER_BYTES + 1
    healthy(pair)


def test_a_late_dial_whose_count_still_fits_costs_a_connection_and_no_byte() -> None:
    pair = ResumingPair()
    near, far = opened(pair)
    pair.cut()
    pair.notice(pair.agent)
    pair.dial()
    pair.dial()
    first, second = pair.links[-2:]
    held, first.to_server = first.to_server, Wire(pair, 0.0)
    pair.settle()
    near.stream.write(b"abc")
    pair.pull(pair.server)
    pair.deliver(pair.server)
    assert far.received == b"abc" and pair.link_of(pair.agent) is second
    first.to_server = held
    pair.settle()
    near.stream.write(b"def")
    pair.settle()
    assert far.received == b"abcdef"
    assert pair.agent.session.epoch == 2
    healthy(pair)


def test_the_agent_may_come_back_before_the_server_has_noticed() -> None:
    pair = ResumingPair()
    near, far = opened(pair)
    far.stream.write(b"late but there")
    pair.pull(pair.agent)
    pair.lose(pair.agent)
    pair.deliver(pair.agent)  # from the old connection, after the agent gave it up
    assert near.received == b"late but there"
    pair.settle()
    far.stream.write(b"!")
    pair.settle()
    assert near.received == b"late but there!"
    healthy(pair)


# Wrong counts


@pytest.mark.parametrize("wrong", [-1, 1, 2**40])
def test_a_wrong_count_in_hello_is_the_peers_fault_and_changes_nothing(
    wrong: int,
) -> None:
    pair = ResumingPair()
    near, far = opened(pair)
    near.stream.write(bytes(3 * ACK_AFTER_BYTES))
    pair.settle()
    session = pair.server.session
    count = session.replay.acked_count if wrong < 0 else session.replay.sent_count
    pair.lose(pair.server)
    said = replace(pair.agent.session.resume_hello(), received=count + wrong)
    with pytest.raises(PeerProtocolError, match="resumes behind message"):
        session.attach(said, pair.server, pair.now)
    assert session.detached and session.epoch == 0 and not session.closed
    pair.settle()
    near.stream.write(b"!")
    pair.settle()
    assert far.received[-1:] == b"!"


def test_an_ack_beyond_what_was_sent_breaks_the_session() -> None:
    pair = ResumingPair()
    near, _ = opened(pair)
    count = pair.server.session.replay.sent_count
    pair.feed(pair.server, frames.encode_ack(count))
    assert pair.server.broke is None
    pair.feed(pair.server, frames.encode_ack(count + 1))
    assert pair.server.broke is not None
    assert near.ends[0] is not None and near.ends[0].code is Code.PROTOCOL


def test_attach_is_for_sessions_that_began_and_have_no_connection() -> None:
    pair = ResumingPair()
    said = pair.agent.session.resume_hello()
    with pytest.raises(InvalidState):
        pair.server.session.attach(said, pair.server, pair.now)
    pair.lose(pair.server)
    pair.server.session.close(Code.OK, "over")
    with pytest.raises(InvalidState):
        pair.server.session.attach(said, pair.server, pair.now)
    fresh = Session(Role.SERVER, hello(), End(), 0.0)
    fresh.detach()
    with pytest.raises(InvalidState):
        fresh.attach(said, End(), 0.0)


def test_a_session_goes_on_only_if_nobody_is_ending_it() -> None:
    pair = SessionPair()
    assert pair.agent.session.may_go_on and pair.server.session.may_go_on
    pair.server.session.go_away(Code.GOING_AWAY, "restart")
    assert not pair.server.session.may_go_on and pair.agent.session.may_go_on
    pair.settle()
    assert not pair.agent.session.may_go_on
    assert not SessionPair(shake_hands=False).server.session.may_go_on


def test_a_server_without_the_session_begins_a_new_one() -> None:
    pair = ResumingPair()
    opened(pair)
    said = pair.agent.session.resume_hello()
    fresh = End()
    fresh.session = Session(Role.SERVER, hello(session_id=""), fresh, pair.now)
    fresh.session.receive_message(frames.encode_hello(said.encode()), pair.now)
    assert fresh.ready_calls == 1
    assert not fresh.session.hello.resume
    assert fresh.session.hello.session_id == said.session_id
    assert fresh.session.hello.received == fresh.session.replay.received_count == 0


# Bounds


def test_beyond_the_mark_data_waits_while_control_and_acks_flow() -> None:
    pair = ResumingPair(agent_window=2**31, server_window=2**31)
    near, far = opened(pair)
    for end in (pair.agent, pair.server):
        end.session.replay.max_kept_bytes = 1024 * 1024
        end.session.in_flight.limit_bytes = 2**30
    for stream in (near.stream, far.stream):
        stream.send_window.limit_offset = 2**31
        stream.write(bytes(4 * 1024 * 1024))
    pair.pull(pair.server)
    pair.pull(pair.agent)
    for end in (pair.agent, pair.server):
        kept = end.session.replay.kept_bytes
        assert 1024 * 1024 <= kept < 1024 * 1024 + 2 * MESSAGE_BYTES
        assert end.session.replay.is_full and not end.session.wants_to_send
    pair.server.open()
    assert not pair.server.session.wants_to_send, "OPEN is data"
    pair.server.session.go_away(Code.GOING_AWAY, "restart")
    goodbye = types(pair.server.session.data_to_send(pair.now))
    assert goodbye == [FrameType.GOAWAY, FrameType.PING]
    pair.deliver(pair.server)
    assert pair.agent.session.wants_to_send, "an ACK is due"
    assert FrameType.DATA not in types(pair.agent.session.data_to_send(pair.now))


def test_full_in_both_directions_is_no_deadlock_not_even_after_a_cut() -> None:
    pair = ResumingPair(agent_window=2**20, server_window=2**20)
    near, far = opened(pair)
    for end in (pair.agent, pair.server):
        end.session.replay.max_kept_bytes = ACK_AFTER_BYTES
    for recorder in (near, far):
        recorder.stream.write(bytes(1024 * 1024))
    pair.pull(pair.server)
    pair.pull(pair.agent)
    pair.cut()
    pair.settle()
    assert len(near.received) == len(far.received) == 1024 * 1024


def test_a_peer_that_asks_and_never_acknowledges_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_module, "MAX_KEPT_MESSAGES", 50)
    monkeypatch.setattr(replay_module, "MAX_ANSWER_MESSAGES", 50)
    pair = SessionPair()
    for number in range(200):
        if pair.agent.session.closed:
            break
        pair.feed(pair.agent, frames.encode_ping(number))
        pair.agent.session.data_to_send(pair.now)
    assert pair.agent.broke is not None and "no ACK" in str(pair.agent.broke)
    assert pair.agent.session.replay.sent_count <= 100


def test_a_message_that_broke_the_protocol_is_not_counted() -> None:
    pair = SessionPair()
    near, _ = opened(pair)
    before = pair.agent.session.replay.received_count
    pair.feed(pair.agent, frames.encode_data(near.stream.id, 7, b"x"))
    assert pair.agent.broke is not None
    assert pair.agent.session.replay.received_count == before


def test_a_message_is_not_acknowledged_before_its_handlers_have_run() -> None:
    pair = SessionPair()
    near, far = opened(pair)
    counts = []
    far.on_data = lambda _: counts.append(pair.agent.session.replay.received_count)
    before = pair.agent.session.replay.received_count
    near.stream.write(b"x")
    pair.settle()
    assert counts == [before]


# Times


def test_a_pong_that_is_sent_again_is_no_round_trip_of_the_new_connection() -> None:
    pair = ResumingPair()
    opened(pair)
    pair.server.session.handle_timer(pair.now)
    pair.pull(pair.server)
    pair.deliver(pair.server)
    pair.pull(pair.agent)  # its PONG is lost on the way
    pair.cut()
    pair.lose(pair.agent)
    pair.lose(pair.server)
    pair.dial()
    pair.deliver(pair.agent)
    pair.server.session.handle_timer(pair.now)  # a PING for the new connection
    pair.sleep(0.2)
    pair.pull(pair.server, 1)  # HELLO
    pair.deliver(pair.server)
    pair.pull(pair.agent)
    while pair.deliver(pair.agent):
        pass
    assert pair.server.session.liveness.round_trip_seconds is None
    pair.settle()
    assert pair.server.session.liveness.round_trip_seconds == pytest.approx(0.2)
