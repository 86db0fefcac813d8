"""Flow-control arithmetic with integers: nothing overruns, nothing stalls.

Covered: limits, offsets that do not follow, late WINDOWs, growth, the property that a
reader which takes everything always lets the writer go on.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import FlowControlError, InvalidState, PeerProtocolError
from shared.mux.windows import MAX_WINDOW_BYTES, ReceiveWindow, SendWindow


def test_data_up_to_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    window = ReceiveWindow(100, now=0.0)
    window.received(0, 100)
    with pytest.raises(FlowControlError, match="limit 100"):
        window.received(100, 1)


@pytest.mark.parametrize("offset", [0, 9, 11, 2**64 - 1])
def test_data_that_does_not_follow_is_refused(offset: int) -> None:
    window = ReceiveWindow(100, now=0.0)
    window.received(0, 10)
    with pytest.raises(PeerProtocolError, match="expected 10"):
        window.received(offset, 1)


def test_a_window_is_worth_sending_when_half_of_it_is_free() -> None:
    window = ReceiveWindow(100, now=0.0)
    window.received(0, 100)
    assert not window.taken(49)
    assert window.taken(1)
    assert window.advance(now=10.0, round_trip_seconds=0.1) == 150
    assert not window.taken(49)


def test_taking_more_than_arrived_is_a_bug_of_the_caller() -> None:
    window = ReceiveWindow(100, now=0.0)
    window.received(0, 10)
    with pytest.raises(InvalidState):
        window.taken(11)


def test_a_reader_that_keeps_up_doubles_the_window_up_to_its_maximum() -> None:
    window, now = ReceiveWindow(MAX_WINDOW_BYTES // 4, now=0.0), 0.0
    for expected in (2, 1, 1):
        window.received(
            window.received_offset, window.limit_offset - window.received_offset
        )
        window.taken(window.received_offset - window.taken_offset)
        now += 0.1
        window.advance(now, round_trip_seconds=0.1)
        assert window.size_bytes == MAX_WINDOW_BYTES // expected


def test_a_slow_reader_keeps_its_window() -> None:
    window = ReceiveWindow(1000, now=0.0)
    window.received(0, 1000)
    window.taken(1000)
    window.advance(now=0.21, round_trip_seconds=0.1)
    assert window.size_bytes == 1000


@pytest.mark.parametrize("round_trip", [0.0, 0.0001])
def test_a_round_trip_below_the_clocks_step_does_not_stop_growth(
    round_trip: float,
) -> None:
    window = ReceiveWindow(1000, now=0.0)
    window.received(0, 1000)
    window.taken(1000)
    window.advance(now=0.001, round_trip_seconds=round_trip)
    assert window.size_bytes == 2000


@given(
    st.integers(1, 5000),
    st.lists(
        st.tuples(st.integers(1, 3000), st.integers(0, 3000), st.floats(0, 1)),
        max_size=60,
    ),
)
def test_a_writer_never_overruns_and_never_stalls_while_the_reader_reads(
    size: int, steps: list[tuple[int, int, float]]
) -> None:
    """Arbitrary writes and takes; then the reader takes all, and credit must come back."""
    now = 0.0
    receiver, sender = ReceiveWindow(size, now), SendWindow(size)
    for write, take, pause in [*steps, (0, 10**9, 1.0)]:
        now += pause
        count = min(write, sender.credit_bytes)
        receiver.received(sender.sent_offset, count)
        sender.sent_offset += count
        held = receiver.received_offset - receiver.taken_offset
        assert held <= receiver.size_bytes
        if receiver.taken(min(take, held)):
            limit = receiver.advance(now, 0.3)
            sender.update(receiver.received_offset, limit)
        assert sender.limit_offset == receiver.limit_offset
    assert sender.credit_bytes > 0


def test_an_older_window_changes_nothing() -> None:
    sender = SendWindow(100)
    sender.sent_offset = 80
    assert not sender.update(50, 200)
    assert not sender.update(40, 150)
    assert (sender.received_offset, sender.limit_offset) == (50, 200)


def test_a_window_says_when_it_unblocks_the_sender() -> None:
    sender = SendWindow(100)
    sender.sent_offset = 100
    assert not sender.update(100, 100)
    assert sender.update(100, 101)
    assert sender.credit_bytes == 1


def test_a_peer_that_claims_unsent_bytes_is_refused() -> None:
    sender = SendWindow(100)
    sender.sent_offset = 10
    with pytest.raises(PeerProtocolError, match="we sent 10"):
        sender.update(11, 200)
