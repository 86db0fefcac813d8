"""What a session counts, by two real cores: bytes, streams, resets, stalls, and sharing one object.

Every number is compared with what the test itself has seen go by.
"""

from shared.errors import Code
from shared.mux.counters import Counters
from shared.mux.outbox import INTERACTIVE_BYTES
from tests.fakes.session_links import ResumingPair
from tests.fakes.session_pair import SessionPair


def test_what_one_end_has_sent_the_other_has_received() -> None:
    pair = SessionPair()
    near = pair.server.open()
    near.stream.write(b"x" * 100_000)
    pair.settle()
    server, agent = pair.server.session.counters, pair.agent.session.counters
    assert server.sent_bytes == agent.received_bytes > 100_000
    assert agent.sent_bytes == server.received_bytes > 0


def test_what_a_stream_sends_counts_as_bulk_once_it_has_sent_much() -> None:
    pair = SessionPair()
    quiet, loud = pair.server.open(), pair.server.open()
    counters = pair.server.session.counters
    for _ in range(100):
        quiet.stream.write(bytes(1000))
        pair.settle()
        pair.sleep(0.1)
    assert counters.sent_bulk_bytes == 0 and counters.sent_bytes > 100_000
    loud.stream.write(bytes(200_000))
    pair.settle()
    assert 200_000 - 4 * INTERACTIVE_BYTES < counters.sent_bulk_bytes <= 200_000


def test_streams_count_for_the_end_that_opened_them() -> None:
    pair = SessionPair()
    for _ in range(3):
        pair.server.open()
    pair.agent.open()
    pair.settle()
    for end in (pair.server, pair.agent):
        counters = end.session.counters
        assert (counters.opened_by_server, counters.opened_by_agent) == (3, 1)


def test_a_reset_counts_once_at_each_end() -> None:
    pair = SessionPair()
    near = pair.server.open()
    pair.settle()
    near.stream.reset(Code.CANCELLED, "enough")
    near.stream.reset(Code.TIMEOUT, "again")
    pair.settle()
    assert pair.server.session.counters.resets_sent == {Code.CANCELLED: 1}
    assert pair.agent.session.counters.resets_received == {Code.CANCELLED: 1}
    assert not pair.server.session.counters.resets_received
    assert not pair.agent.session.counters.resets_sent


def test_a_bug_in_a_handler_is_a_reset_of_ours_and_not_also_of_the_peers() -> None:
    pair = SessionPair()
    near = pair.server.open()
    pair.settle()

    def bug(_: object) -> None:
        raise RuntimeError("a bug")

    pair.agent.handlers[near.stream.id].on_data = bug
    near.stream.write(b"x")
    pair.settle()
    assert pair.agent.session.counters.resets_sent == {Code.INTERNAL: 1}
    assert not pair.agent.session.counters.resets_received


def test_streams_that_end_well_are_no_resets_and_those_that_end_with_the_session_are() -> (
    None
):
    pair = SessionPair()
    well, lost = pair.server.open(), pair.server.open()
    pair.settle()
    well.stream.write_eof()
    pair.agent.handlers[well.stream.id].stream.write_eof()
    pair.settle()
    pair.server.session.close(Code.SESSION_LOST, "the tunnel was lost")
    assert pair.server.session.counters.resets_received == {Code.SESSION_LOST: 1}
    assert [end and end.code for end in lost.ends] == [Code.SESSION_LOST]


def test_a_stall_counts_when_credit_comes_for_waiting_data() -> None:
    pair = SessionPair(agent_window=1000)
    near = pair.server.open()
    pair.settle()
    far = pair.agent.handlers[near.stream.id]
    far.stalled = True
    near.stream.write(b"x" * 1500)
    pair.settle()
    assert len(far.received) == 1000
    assert pair.server.session.counters.window_stalls == 0
    far.take()
    pair.settle()
    assert len(far.received) == 1500
    assert pair.server.session.counters.window_stalls == 1


def test_a_window_that_was_used_up_by_the_last_byte_stalls_nobody() -> None:
    pair = SessionPair(agent_window=1000)
    near = pair.server.open()
    near.stream.write(b"x" * 1000)
    pair.settle()
    assert pair.agent.handlers[near.stream.id].received == b"x" * 1000
    assert pair.server.session.counters.window_stalls == 0


def test_sessions_that_share_an_object_count_into_one_total() -> None:
    total = Counters()
    pairs = [SessionPair(), SessionPair()]
    for pair in pairs:
        before = pair.server.session.counters.received_bytes
        assert before > 0  # the HELLO
        for _ in range(2):  # the second changes nothing
            total.take_over(pair.server.session)
        pair.server.open()
    assert total.opened_by_server == 2
    received = sum(pair.agent.session.counters.sent_bytes for pair in pairs)
    assert total.received_bytes == received


def test_a_copy_does_not_change_any_more() -> None:
    counters = Counters()
    counters.resets_sent[Code.OK] += 1
    copied = counters.copy()
    counters.stream_opened(1)
    counters.resets_sent[Code.OK] += 1
    assert copied.opened_by_agent == 0 and copied.resets_sent == {Code.OK: 1}


def test_a_resume_counts_at_both_ends_with_what_it_sends_again() -> None:
    pair = ResumingPair()
    near = pair.server.open()
    near.stream.write(b"x" * 5000)
    pair.pull(pair.server)
    pair.cut()
    pair.settle()
    server, agent = pair.server.session.counters, pair.agent.session.counters
    assert (server.resumes, agent.resumes) == (1, 1)
    assert 5000 < server.resent_bytes < 5200 and agent.resent_bytes < 200
    total = Counters()
    total.add(server)
    total.add(agent)
    assert total.resumes == 2
    assert total.resent_bytes == server.resent_bytes + agent.resent_bytes
