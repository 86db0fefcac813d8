"""Flow-control arithmetic with integers: nothing overruns, nothing stalls.

Covered: limits, offsets that do not follow, late WINDOWs; growth to the bandwidth-delay product
and back; what is booked in a budget; the property that a reader which takes everything always
lets the writer go on.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import FlowControlError, InvalidState, PeerProtocolError
from shared.mux.budget import WindowBudget
from shared.mux.windows import (
    INITIAL_WINDOW_BYTES,
    MAX_WINDOW_BYTES,
    SHORT_PATH_SECONDS,
    ReceiveWindow,
    SendWindow,
)


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


class Reader:
    """Takes what the window lets through, at a rate, over a path that does not limit it."""

    def __init__(
        self, round_trip: float, budget: WindowBudget | None = None, life_bytes: int = 0
    ) -> None:
        self.now, self.round_trip = 0.0, round_trip
        self.window = ReceiveWindow(
            INITIAL_WINDOW_BYTES, self.now, budget or WindowBudget(2**62)
        )
        # As if it had taken so much before.
        window = self.window
        window.received_offset = window.taken_offset = window.limit_offset = life_bytes
        window.limit_offset += INITIAL_WINDOW_BYTES

    def take_a_flight(self, within: float) -> None:
        """What the window permits arrives at once, a round trip after it was permitted."""
        window = self.window
        self.now += self.round_trip
        count = window.limit_offset - window.received_offset
        window.received(window.received_offset, count)
        pieces = max(1, min(64, count // 4096))
        for piece in range(pieces):
            self.now += within / pieces
            if window.taken(count // pieces + (count % pieces if not piece else 0)):
                window.advance(
                    self.now,
                    self.round_trip,
                    is_short_path=self.round_trip < SHORT_PATH_SECONDS,
                )


@pytest.mark.parametrize("round_trip", [0.05, 0.2])
def test_a_bulk_stream_has_a_window_of_25_megabytes_after_few_round_trips(
    round_trip: float,
) -> None:
    reader = Reader(round_trip)
    for _ in range(7):
        reader.take_a_flight(within=0.0)
    assert reader.window.size_bytes >= 25_000_000
    for _ in range(3):
        reader.take_a_flight(within=0.0)
    assert reader.window.size_bytes == MAX_WINDOW_BYTES


def test_what_a_local_kernel_swallows_makes_no_window_grow() -> None:
    reader = Reader(0.0003)
    while reader.window.taken_offset < 4 * INITIAL_WINDOW_BYTES:
        reader.take_a_flight(within=0.0)
    assert reader.window.size_bytes <= 1.25 * INITIAL_WINDOW_BYTES


@pytest.mark.parametrize("round_trip", [0.0, 0.0003])
def test_a_bulk_stream_on_a_short_path_grows_within_milliseconds(
    round_trip: float,
) -> None:
    reader = Reader(round_trip)
    while reader.window.size_bytes < 2 * 1024 * 1024 and reader.now < 1:
        reader.take_a_flight(within=0.0001)
    assert reader.now < 0.02


@pytest.mark.parametrize("rate", [1e5, 1e6, 25e6, 125e6])
def test_a_window_settles_at_two_to_four_times_what_is_taken_in_a_round_trip(
    rate: float,
) -> None:
    reader, product = Reader(0.1), rate * 0.1
    for _ in range(400):
        window = reader.window
        count = min(window.limit_offset - window.received_offset, int(rate / 100))
        window.received(window.received_offset, count)
        reader.now += 0.01
        if window.taken(count):
            window.advance(reader.now, 0.1)
    least = max(min(1.9 * product, MAX_WINDOW_BYTES), INITIAL_WINDOW_BYTES)
    assert least <= reader.window.size_bytes <= max(4.3 * product, INITIAL_WINDOW_BYTES)


def test_a_window_falls_back_when_its_reader_slows_down() -> None:
    reader = Reader(0.05)
    for _ in range(9):
        reader.take_a_flight(within=0.0)
    assert reader.window.size_bytes == MAX_WINDOW_BYTES
    limit = reader.window.limit_offset
    for _ in range(3000):
        window = reader.window
        count = min(window.limit_offset - window.received_offset, 100_000)
        window.received(window.received_offset, count)
        reader.now += 0.1
        if window.taken(count):
            assert window.advance(reader.now, 0.05) >= limit, "a limit never falls"
            limit = window.limit_offset
    assert reader.window.size_bytes <= 4 * 50_000
    assert limit - reader.window.taken_offset <= 5 * 50_000


def test_a_pause_costs_half_the_window_at_most() -> None:
    reader = Reader(0.05)
    for _ in range(6):
        reader.take_a_flight(within=0.0)
    before = reader.window.size_bytes
    reader.now += 3600
    sizes = []
    for _ in range(3):
        reader.take_a_flight(within=0.0)
        sizes.append(reader.window.size_bytes)
    assert min(sizes) >= before // 2 and sizes[-1] >= before


def test_the_first_window_is_the_streams_own_and_the_rest_is_booked() -> None:
    budget = WindowBudget(2**30)
    reader = Reader(0.05, budget)
    assert budget.used_bytes == 0
    for _ in range(5):
        reader.take_a_flight(within=0.0)
    window = reader.window
    promised = window.limit_offset - window.taken_offset
    assert promised > INITIAL_WINDOW_BYTES
    assert budget.used_bytes >= promised - INITIAL_WINDOW_BYTES
    window.close()
    assert budget.used_bytes == 0


def test_without_a_budget_left_a_stream_goes_on_with_its_first_window() -> None:
    budget = WindowBudget(2**20)
    budget.change(2**20)
    reader = Reader(0.05, budget)
    for flight in range(1, 20):
        reader.take_a_flight(within=0.0)
        assert reader.window.taken_offset == flight * INITIAL_WINDOW_BYTES
    assert reader.window.booked_bytes == 0
    budget.change(-(2**20))
    reader.take_a_flight(within=0.0)
    assert reader.window.size_bytes > INITIAL_WINDOW_BYTES


def test_after_the_end_only_what_is_unread_is_booked() -> None:
    budget = WindowBudget(2**30)
    reader = Reader(0.05, budget)
    for _ in range(5):
        reader.take_a_flight(within=0.0)
    window = reader.window
    window.received(window.received_offset, 100_000)
    window.finish()
    assert budget.used_bytes == 100_000 - INITIAL_WINDOW_BYTES
    assert not window.taken(99_999)
    assert window.taken(1)
    window.advance(reader.now, 0.05)  # was due before the end came
    window.finish()
    assert budget.used_bytes == 0


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


# Credit that goes back


def grown() -> tuple[Reader, WindowBudget]:
    budget = WindowBudget(2**30)
    reader = Reader(0.05, budget)
    for _ in range(5):
        reader.take_a_flight(within=0.0)
    return reader, budget


def test_returned_credit_is_booked_no_more_and_the_stream_begins_again() -> None:
    reader, budget = grown()
    window = reader.window
    sender = SendWindow(window.limit_offset)
    sender.sent_offset = window.received_offset
    assert sender.give_back(INITIAL_WINDOW_BYTES) == (
        window.limit_offset,
        sender.sent_offset + INITIAL_WINDOW_BYTES,
    )
    window.returned(window.limit_offset, sender.limit_offset, reader.now)
    assert window.limit_offset == sender.limit_offset
    assert (window.size_bytes, budget.used_bytes) == (INITIAL_WINDOW_BYTES, 0)
    reader.take_a_flight(within=0.0)
    assert window.limit_offset > sender.limit_offset


def test_credit_that_a_window_under_way_renews_is_not_returned() -> None:
    reader, budget = grown()
    window, booked = reader.window, budget.used_bytes
    limit = window.limit_offset
    window.returned(limit - 1, window.received_offset, reader.now)
    assert (window.limit_offset, budget.used_bytes) == (limit, booked)


@pytest.mark.parametrize(("known", "limit"), [(1, 0), (0, 1), (0, -1)])
def test_a_return_that_cannot_be_is_the_peers_fault(known: int, limit: int) -> None:
    reader, _ = grown()
    window = reader.window
    limit += window.received_offset if limit < 0 else window.limit_offset
    with pytest.raises(PeerProtocolError, match="peer returns"):
        window.returned(window.limit_offset + known, limit, reader.now)


def test_a_sender_that_keeps_nothing_gets_credit_when_all_is_taken() -> None:
    window = ReceiveWindow(1000, now=0.0)
    window.received(0, 300)
    window.returned(1000, 300, 1.0)
    assert not window.taken(299)
    assert window.taken(1)
    assert window.advance(2.0, 0.05) == 1300
