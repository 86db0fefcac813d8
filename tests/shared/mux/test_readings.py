"""One look at sessions: streams, stalls, what is queued and what is unread, the newest round trip."""

from shared.mux.budget import WindowBudget
from shared.mux.counters import Counters
from shared.mux.readings import TunnelReading, read_memory, read_sessions
from tests.fakes.session_links import ResumingPair
from tests.fakes.session_pair import SessionPair


def look(*pairs: SessionPair, at: str = "server") -> TunnelReading:
    sessions = [getattr(pair, at).session for pair in pairs]
    return read_sessions(sessions, Counters(), uncounted_target="control")


def test_without_sessions_there_is_nothing_to_see() -> None:
    reading = look()
    assert (reading.sessions, reading.rtt_seconds, reading.open_streams) == (0, None, 0)


def test_streams_for_reports_are_not_among_the_open_ones() -> None:
    pair = SessionPair()
    pair.agent.open("control")
    pair.server.open()
    pair.settle()
    assert look(pair).open_streams == look(pair, at="agent").open_streams == 1


def test_a_reader_that_takes_nothing_is_seen_at_both_ends() -> None:
    pair = SessionPair(agent_window=1000)
    slow, quick = pair.server.open(), pair.server.open()
    pair.settle()
    pair.agent.handlers[slow.stream.id].stalled = True
    slow.stream.write(b"x" * 1500)
    quick.stream.write(b"x" * 1500)
    pair.settle()
    server, agent = look(pair), look(pair, at="agent")
    assert (server.stalled_streams, server.queued_bytes) == (1, 500)
    assert (agent.unread_bytes, agent.queued_bytes) == (1000, 0)
    pair.agent.handlers[slow.stream.id].take()
    pair.settle()
    assert look(pair).stalled_streams == look(pair).queued_bytes == 0
    assert look(pair, at="agent").unread_bytes == 500


def test_the_round_trip_is_that_of_the_newest_session_that_knows_one() -> None:
    older, newer, unmeasured = SessionPair(), SessionPair(), SessionPair()
    older.server.session.liveness.round_trip_seconds = 0.2
    newer.server.session.liveness.round_trip_seconds = 0.1
    unmeasured.server.session.liveness.round_trip_seconds = None
    reading = look(older, newer, unmeasured)
    assert (reading.sessions, reading.rtt_seconds) == (3, 0.1)


def test_memory_that_counts_against_the_ceilings_is_seen() -> None:
    pair = ResumingPair()
    near = pair.server.open()
    near.stream.write(b"x" * 200_000)
    for _ in range(6):
        pair.settle()
        pair.sleep(0.01)
    window = pair.agent.handlers[near.stream.id].stream.receive_window
    assert window.booked_bytes > 0
    assert look(pair, at="agent").window_bytes == window.booked_bytes
    assert pair.agent.session.budget.used_bytes == window.booked_bytes
    pair.cut()
    near.stream.write(b"x" * 10_000)
    pair.pull(pair.server)
    assert look(pair).kept_bytes >= 10_000


def test_memory_is_that_of_all_sessions() -> None:
    budget = WindowBudget(1000)
    budget.for_session().change(30)
    budget.for_session().change(40)
    budget.for_session().note_held_back()
    reading = read_memory(budget)
    budget.change(100)
    assert (reading.used_bytes, reading.ceiling_bytes) == (70, 1000)
    assert reading.held_back == 1
