"""Ceilings of memory: arithmetic, and many readers that share one.

Covered: a budget is never overdrawn, by any of those who share it or its parent; what is
booked is given back; one alone gets most of it, many get the same, one that comes late its
part; whoever gets nothing goes on with its first window.
"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mux.budget import DEFAULT_WINDOW_MEMORY_BYTES, WindowBudget
from shared.mux.windows import INITIAL_WINDOW_BYTES, ReceiveWindow

MIB = 1024 * 1024


def test_a_session_has_at_most_half_and_one_stream_fills_a_long_fat_path() -> None:
    process = WindowBudget()
    session = process.for_session()
    assert session.ceiling_bytes == DEFAULT_WINDOW_MEMORY_BYTES // 2
    # 1 Gbit/s over 200 ms, at either end twice what is under way.
    assert session.share(0) >= 2 * 25_000_000


def test_what_a_session_books_is_booked_for_the_process() -> None:
    process = WindowBudget(90 * MIB)
    one, other = process.for_session(), process.for_session()
    one.change(30 * MIB)
    assert (process.used_bytes, other.used_bytes) == (30 * MIB, 0)
    other.change(15 * MIB)
    assert one.share(30 * MIB) == 30 * MIB, "two thirds of its own 45"
    one.change(-30 * MIB)
    assert process.used_bytes == 15 * MIB


@given(
    st.integers(1, 10**6),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2 * 10**6)), max_size=200),
)
def test_whoever_keeps_to_its_share_never_overdraws_a_budget(
    ceiling: int, wishes: list[tuple[int, int]]
) -> None:
    process = WindowBudget(ceiling)
    sessions = [process.for_session() for _ in range(5)]
    booked = [0] * 10
    for number, wish in wishes:
        session = sessions[number % 5]
        # What is there need not be given back at once.
        more = max(0, min(wish, session.share(booked[number])) - booked[number])
        less = max(0, booked[number] - wish)
        session.change(more - less)
        booked[number] += more - less
        assert 0 <= process.used_bytes <= process.ceiling_bytes
        assert process.used_bytes == sum(booked)
        for index, each in enumerate(sessions):
            assert each.used_bytes == booked[index] + booked[index + 5]
            assert each.used_bytes <= each.ceiling_bytes


class Crowd:
    """Readers that take all they get, 50 ms after the limit moved; each has its window."""

    def __init__(self, budget: WindowBudget) -> None:
        self.budget = budget
        self.windows: list[ReceiveWindow] = []
        self.now = 0.0

    def join(self, count: int = 1) -> None:
        for _ in range(count):
            window = ReceiveWindow(INITIAL_WINDOW_BYTES, self.now, self.budget)
            self.windows.append(window)

    def go_on(self, round_trips: int, rng: random.Random) -> None:
        for _ in range(round_trips):
            self.now += 0.05
            rng.shuffle(self.windows)
            for window in self.windows:
                self.read(window)

    def read(self, window: ReceiveWindow) -> None:
        left = window.limit_offset - window.received_offset
        assert left >= INITIAL_WINDOW_BYTES, "each goes on, whatever the others do"
        window.received(window.received_offset, left)
        while left:
            piece = min(left, 128 * 1024)
            left -= piece
            if window.taken(piece):
                window.advance(self.now, 0.05)
            assert self.budget.used_bytes <= self.budget.ceiling_bytes

    def shares(self) -> list[int]:
        return sorted(window.booked_bytes for window in self.windows)


@pytest.mark.parametrize("count", [1, 2, 10, 100, 1000])
def test_all_that_want_more_than_there_is_settle_at_the_same_share(count: int) -> None:
    crowd, rng = Crowd(WindowBudget(64 * MIB)), random.Random(count)
    crowd.join(count)
    crowd.go_on(14, rng)
    shares = crowd.shares()
    assert shares[-1] <= 1.2 * shares[0] + 1
    assert sum(shares) >= 0.6 * 64 * MIB
    assert sum(shares) == crowd.budget.used_bytes


def test_one_that_comes_late_gets_the_same_and_the_others_give_it_back() -> None:
    crowd, rng = Crowd(WindowBudget(64 * MIB)), random.Random(3)
    crowd.join(4)
    crowd.go_on(12, rng)
    crowd.join(8)
    crowd.go_on(16, rng)
    shares = crowd.shares()
    assert shares[-1] <= 1.3 * shares[0]
    for window in crowd.windows[:8]:
        window.close()
    del crowd.windows[:8]
    crowd.go_on(12, rng)
    assert crowd.shares()[0] > 1.5 * shares[-1]


def test_stalled_readers_leave_something_to_the_others() -> None:
    crowd, rng = Crowd(WindowBudget(64 * MIB)), random.Random(4)
    crowd.join(1000)
    crowd.go_on(12, rng)
    crowd.windows.clear()  # nobody reads them any more, nobody closes them
    crowd.join(2)
    crowd.go_on(12, rng)
    assert all(window.size_bytes >= INITIAL_WINDOW_BYTES for window in crowd.windows)
    assert crowd.budget.used_bytes <= crowd.budget.ceiling_bytes
