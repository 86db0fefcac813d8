"""The schedule of SPEC 8, with a clock and randomness of our own.

Covered: the quick minute, full jitter with a growing ceiling, at once after GOAWAY, what the
server asks for (with jitter, bounded), tunnels that do not last, agents that spread out.
"""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tower_agent.reconnect import (
    FIRST_CEILING_SECONDS,
    LAST_CEILING_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    QUICK_DELAY_SECONDS,
    QUICK_FOR_SECONDS,
    STABLE_AFTER_SECONDS,
    Reconnect,
)


class Highest(random.Random):
    """Always the upper end: what the ceilings are."""

    def uniform(self, a: float, b: float) -> float:
        return b


def lost_schedule(
    rng: random.Random, *, clean: bool = False, now: float = 100.0
) -> Reconnect:
    """Of a tunnel that stood for long and is lost now."""
    schedule = Reconnect(0.0, rng)
    schedule.delay_seconds(0.0)
    schedule.connected(1.0)
    schedule.lost(now, clean=clean)
    return schedule


def test_the_first_dial_is_at_once_and_the_second_is_not() -> None:
    schedule = Reconnect(7.0, Highest())
    assert schedule.delay_seconds(7.0) == 0.0
    assert schedule.delay_seconds(7.0) == QUICK_DELAY_SECONDS


def test_for_a_minute_after_a_loss_delays_are_short() -> None:
    schedule = lost_schedule(Highest())
    for after in (0.0, 1.0, 30.0, 59.9):
        assert schedule.delay_seconds(100.0 + after) == QUICK_DELAY_SECONDS == 0.5


def test_after_the_minute_the_ceiling_doubles_from_one_second_to_thirty() -> None:
    schedule = lost_schedule(Highest())
    later = 100.0 + QUICK_FOR_SECONDS
    delays = [schedule.delay_seconds(later) for _ in range(8)]
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert (delays[0], delays[-1]) == (FIRST_CEILING_SECONDS, LAST_CEILING_SECONDS)


def test_every_loss_of_a_lasting_tunnel_begins_with_a_quick_minute() -> None:
    schedule = lost_schedule(Highest())
    for _ in range(8):
        schedule.delay_seconds(1000.0)
    schedule.connected(1000.0)
    schedule.lost(1000.0 + STABLE_AFTER_SECONDS, clean=False)
    assert schedule.delay_seconds(1005.0) == QUICK_DELAY_SECONDS
    assert schedule.delay_seconds(1005.0 + QUICK_FOR_SECONDS) == FIRST_CEILING_SECONDS


def test_after_a_clean_goaway_one_dial_is_at_once() -> None:
    schedule = lost_schedule(Highest(), clean=True)
    assert schedule.delay_seconds(100.0) == 0.0
    assert schedule.delay_seconds(100.0) == QUICK_DELAY_SECONDS


def test_a_server_that_takes_and_drops_the_agent_is_not_dialled_quickly_for_ever() -> (
    None
):
    schedule = lost_schedule(Highest())
    now, dials = 100.0, 0
    while now < 100.0 + 3600:
        now += schedule.delay_seconds(now)
        dials += 1
        schedule.connected(now)
        now += 0.1
        schedule.lost(now, clean=True)
    # A minute of quick ones, then about one in thirty seconds.
    assert dials < 60 / 0.6 + 5 + 3600 / 30


def test_what_the_server_asks_for_is_waited_and_a_quarter_more_at_most() -> None:
    for seed in range(50):
        schedule = lost_schedule(random.Random(seed), clean=True)
        schedule.asked(100.0, 20.0)
        assert 20.0 <= schedule.delay_seconds(100.0) <= 25.0


def test_what_the_server_asks_for_holds_for_every_dial_until_then() -> None:
    schedule = lost_schedule(Highest())
    schedule.asked(100.0, 8.0)
    assert schedule.delay_seconds(100.0) == 10.0
    assert schedule.delay_seconds(104.0) == 6.0
    schedule.asked(104.0, 0.0)
    assert schedule.delay_seconds(104.0) == 6.0
    assert schedule.delay_seconds(110.0) == QUICK_DELAY_SECONDS


def test_a_tunnel_that_came_up_all_the_same_ends_the_waiting() -> None:
    schedule = lost_schedule(Highest())
    schedule.asked(100.0, 300.0)
    schedule.connected(101.0)
    schedule.lost(110.0, clean=False)
    assert schedule.delay_seconds(110.0) == QUICK_DELAY_SECONDS


@pytest.mark.parametrize("asked", [1e9, float("inf"), MAX_RETRY_AFTER_SECONDS])
def test_no_answer_keeps_an_agent_away_for_longer_than_five_minutes(
    asked: float,
) -> None:
    schedule = lost_schedule(Highest())
    schedule.asked(100.0, asked)
    assert schedule.delay_seconds(100.0) == 300.0 * 1.25


def test_a_pause_below_zero_is_none() -> None:
    schedule = lost_schedule(Highest())
    schedule.asked(100.0, -5.0)
    assert schedule.delay_seconds(100.0) == QUICK_DELAY_SECONDS


def test_agents_that_lost_the_same_server_spread_out() -> None:
    schedules = [lost_schedule(random.Random(seed)) for seed in range(1000)]
    delays = [schedule.delay_seconds(100.0) for schedule in schedules]
    assert 0.23 < statistics.mean(delays) < 0.27
    assert 0.12 < statistics.pstdev(delays) < 0.17


@given(
    st.integers(),
    st.lists(
        st.tuples(
            st.sampled_from(["connected", "lost", "clean", "asked", "delay"]),
            st.floats(0, 1000),
        ),
        max_size=50,
    ),
)
def test_every_delay_is_within_the_limits(
    seed: int, events: list[tuple[str, float]]
) -> None:
    schedule, now = Reconnect(0.0, random.Random(seed)), 0.0
    for what, value in events:
        now += value
        if what == "connected":
            schedule.connected(now)
        elif what in ("lost", "clean"):
            schedule.lost(now, clean=what == "clean")
        elif what == "asked":
            schedule.asked(now, value)
        else:
            assert 0.0 <= schedule.delay_seconds(now) <= 375.0
