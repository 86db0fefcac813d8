"""Signs of life, with times given by hand.

Covered: pings on a silent link, now and then on a busy one, death, round-trip times, a
process that itself stood still, and that `next_timer` never lets a due time pass.
"""

import pytest

from shared.mux.liveness import (
    ANSWER_SECONDS,
    CLOCK_STEP_SECONDS,
    DEAD_AFTER_SECONDS,
    IDLE_ROUND_TRIP_EVERY_SECONDS,
    PING_AFTER_SECONDS,
    ROUND_TRIP_EVERY_SECONDS,
    SERVER_PING_AFTER_SECONDS,
    Liveness,
)


def measured(now: float = 100.0) -> Liveness:
    """A liveness that has had its first ping answered."""
    liveness = Liveness(now - 0.1)
    liveness.pong(liveness.ping(now - 0.1), now)
    liveness.received(now)
    return liveness


def test_the_first_ping_is_due_at_once() -> None:
    liveness = Liveness(100.0)
    assert liveness.next_timer() <= 100.0
    assert liveness.ping_is_due(100.0)


def test_a_silent_link_gets_a_ping_and_then_only_one() -> None:
    liveness = measured(100.0)
    assert liveness.next_timer() == 100.0 + PING_AFTER_SECONDS
    assert not liveness.ping_is_due(101.9)
    assert liveness.ping_is_due(102.0)
    liveness.ping(102.0)
    assert not liveness.ping_is_due(103.0)


def test_a_busy_link_is_measured_now_and_then() -> None:
    liveness = measured(100.0)
    at = 99.9 + ROUND_TRIP_EVERY_SECONDS
    liveness.received(at)
    assert liveness.next_timer() == pytest.approx(at)
    assert liveness.ping_is_due(at + 0.001)


def test_measuring_can_be_put_off_for_a_while_but_no_question_of_life() -> None:
    liveness = measured(100.0)
    at = 99.9 + ROUND_TRIP_EVERY_SECONDS
    liveness.received(at)
    assert liveness.ping_is_due(at) and liveness.put_off(at)
    assert not liveness.ping_is_due(at + 1.0)
    silent = at + PING_AFTER_SECONDS
    assert liveness.next_timer() == silent
    assert liveness.ping_is_due(silent) and not liveness.put_off(silent)
    late = 99.9 + IDLE_ROUND_TRIP_EVERY_SECONDS
    liveness.received(late)
    assert liveness.ping_is_due(late) and not liveness.put_off(late)
    assert not Liveness(100.0).put_off(100.0), "nothing is known yet"


def test_the_later_end_notices_death_as_soon() -> None:
    liveness = Liveness(100.0, SERVER_PING_AFTER_SECONDS)
    liveness.pong(liveness.ping(100.0), 100.0)
    assert liveness.next_timer() == 102.5
    liveness.ping(102.5)
    assert liveness.next_timer() == 104.5
    assert not liveness.is_dead(104.4) and liveness.is_dead(104.5)


def test_the_peer_is_dead_within_five_seconds_of_silence() -> None:
    liveness = measured(100.0)
    liveness.ping(102.0)
    assert liveness.next_timer() == 104.5
    assert not liveness.is_dead(104.4)
    assert liveness.is_dead(104.5)
    assert DEAD_AFTER_SECONDS < 5


def test_any_byte_is_a_sign_of_life() -> None:
    liveness = measured(100.0)
    liveness.ping(102.0)
    liveness.received(104.0)
    assert not liveness.is_dead(108.4)
    assert liveness.next_timer() == 108.5


def test_silence_without_a_question_proves_nothing() -> None:
    """The process was stopped for a minute before it could ask."""
    liveness = measured(100.0)
    assert not liveness.is_dead(160.0)
    assert liveness.ping_is_due(160.0)
    liveness.ping(160.0)
    assert not liveness.is_dead(160.0 + ANSWER_SECONDS - 0.01)
    assert liveness.next_timer() == 160.0 + ANSWER_SECONDS
    assert liveness.is_dead(160.0 + ANSWER_SECONDS)


def test_a_process_that_stood_still_after_asking_can_start_over() -> None:
    liveness = measured(100.0)
    question = liveness.ping(102.0)
    liveness.forgive(160.0)
    assert not liveness.is_dead(160.0)
    liveness.pong(question, 160.1)
    assert liveness.round_trip_seconds == pytest.approx(0.1), "not the minute"
    assert liveness.ping_is_due(161.5)


def test_round_trips_are_measured_and_the_smallest_is_kept() -> None:
    liveness = Liveness(0.0)
    assert liveness.round_trip_seconds is None
    for at, took in ((1.0, 0.2), (2.0, 0.05), (3.0, 0.3)):
        liveness.pong(liveness.ping(at), at + took)
    assert liveness.round_trip_seconds == pytest.approx(0.3)
    assert liveness.min_round_trip_seconds == pytest.approx(0.05)


def test_an_answer_that_was_not_asked_for_changes_nothing() -> None:
    liveness = Liveness(0.0)
    liveness.pong(1, 1.0)
    assert liveness.round_trip_seconds is None
    question = liveness.ping(2.0)
    liveness.pong(question + 1, 2.1)
    assert liveness.round_trip_seconds is None


def test_a_round_trip_below_the_clocks_step_is_not_nothing() -> None:
    liveness = Liveness(0.0)
    liveness.pong(liveness.ping(1.0), 1.0)
    assert liveness.round_trip_seconds == CLOCK_STEP_SECONDS
