"""Credit of streams that rest: when it goes back, and that the stream goes on after it.

Covered: a stream that sends or has something to send keeps its credit; one that rests gives
it back once; little credit, streams that are over and half-closed ones are left alone; two
sessions agree on the limit also when a WINDOW and a RETURN cross.
"""

from dataclasses import replace

from shared.mux.idle import IDLE_SECONDS, IdleCredit
from shared.mux.stream import Stream
from shared.mux.windows import INITIAL_WINDOW_BYTES
from tests.fakes.session_pair import Recorder, SessionPair

MUCH = 10 * INITIAL_WINDOW_BYTES


def streams(count: int = 1) -> list[Stream]:
    pair = SessionPair(agent_window=MUCH)
    return [pair.server.open().stream for _ in range(count)]


def test_a_stream_that_rests_gives_back_once_until_it_gets_credit_again() -> None:
    (stream,), idle = streams(), IdleCredit()
    idle.watch(stream, 100.0)
    assert list(idle.due(100.0 + IDLE_SECONDS - 0.1)) == []
    assert list(idle.due(100.0 + IDLE_SECONDS)) == [stream]
    assert list(idle.due(1e9)) == []
    idle.watch(stream, 200.0)
    assert list(idle.due(200.0 + IDLE_SECONDS)) == [stream]


def test_a_stream_that_sends_now_and_then_keeps_its_credit() -> None:
    (stream,), idle = streams(), IdleCredit()
    idle.watch(stream, 0.0)
    for now in range(5, 60, 5):
        stream.send_window.sent_offset += 1
        assert list(idle.due(now)) == []
    assert list(idle.due(55 + IDLE_SECONDS)) == [stream]


def test_a_stream_that_has_something_to_send_keeps_its_credit() -> None:
    (stream,), idle = streams(), IdleCredit()
    stream.write(b"held back by others")
    idle.watch(stream, 0.0)
    assert list(idle.due(1e6)) == []


def test_little_credit_and_streams_that_end_are_left_alone() -> None:
    (little, over, closed), idle = streams(3), IdleCredit()
    little.send_window.limit_offset = INITIAL_WINDOW_BYTES
    for stream in (little, over, closed):
        idle.watch(stream, 0.0)
    over.write_eof()
    over.session.data_to_send(0.0)
    idle.forget(closed)
    assert list(idle.due(1e6)) == []


# Two sessions


def after_a_burst(
    pair: SessionPair | None = None,
) -> tuple[SessionPair, Recorder, Recorder]:
    pair = pair or SessionPair()
    near = pair.server.open()
    for _ in range(10):
        near.stream.write(bytes(100_000))
        pair.settle()
        pair.sleep(0.01)
    far = pair.agent.handlers[near.stream.id]
    assert near.stream.send_window.credit_bytes > INITIAL_WINDOW_BYTES
    assert pair.agent.session.budget.used_bytes > 0
    return pair, near, far


def rest(pair: SessionPair) -> None:
    for _ in range(4):  # as often as pings make the timer due
        pair.sleep(IDLE_SECONDS / 2)
        pair.server.session.liveness.forgive(pair.now)
        assert pair.server.session.handle_timer(pair.now)


def test_memory_that_a_burst_left_booked_is_free_after_a_rest() -> None:
    pair, near, far = after_a_burst()
    rest(pair)
    pair.settle()
    assert near.stream.send_window.credit_bytes == INITIAL_WINDOW_BYTES
    limit = far.stream.receive_window.limit_offset
    assert limit == near.stream.send_window.limit_offset
    assert pair.agent.session.budget.used_bytes == 0
    before = len(far.received)
    for _ in range(20):
        near.stream.write(bytes(100_000))
        pair.settle()
    assert len(far.received) == before + 2_000_000


def test_a_peer_that_does_not_know_returns_is_sent_none() -> None:
    """0.1.0 would take it for a broken protocol."""
    pair = SessionPair()
    assert pair.server.session.peer is not None
    pair.server.session.peer = replace(pair.server.session.peer, takes_returns=False)
    pair, near, _ = after_a_burst(pair)
    limit = near.stream.send_window.limit_offset
    rest(pair)
    assert near.stream.send_window.limit_offset == limit


def test_a_window_and_a_return_that_cross_leave_the_same_limit_at_both_ends() -> None:
    pair, near, far = after_a_burst()
    far.stalled = True
    near.stream.write(bytes(200_000))
    pair.settle()
    far.take()
    pair.pull(pair.agent)  # a WINDOW is under way
    rest(pair)
    pair.pull(pair.server)  # a RETURN is, too
    pair.settle()
    window = far.stream.receive_window
    assert near.stream.send_window.limit_offset == window.limit_offset
    assert near.stream.send_window.credit_bytes > INITIAL_WINDOW_BYTES
    assert pair.agent.broke is None and pair.server.broke is None
