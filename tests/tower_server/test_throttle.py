"""Guesses are slowed down per source and globally, in a table that does not grow.

Covered: the burst, the refill, sources apart, IPv6 networks, the global limit, forgetting.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tower_server import throttle
from tower_server.throttle import GuessThrottle, source_key


def test_a_source_without_wrong_proofs_never_waits() -> None:
    guard = GuessThrottle(0.0)
    assert all(guard.wait_seconds("192.0.2.1", 0.0) == 0 for _ in range(10_000))
    assert len(guard) == 0


def test_after_the_burst_a_guess_takes_six_seconds() -> None:
    guard = GuessThrottle(0.0)
    for _ in range(10):
        assert guard.wait_seconds("192.0.2.1", 0.0) == 0
        guard.guessed("192.0.2.1", 0.0)
    assert guard.wait_seconds("192.0.2.1", 0.0) == pytest.approx(6.0)
    assert guard.wait_seconds("192.0.2.1", 5.0) == pytest.approx(1.0)
    assert guard.wait_seconds("192.0.2.1", 6.001) == 0


def test_other_sources_do_not_wait_for_one_guesser() -> None:
    guard = GuessThrottle(0.0)
    for _ in range(50):
        guard.guessed("192.0.2.1", 0.0)
    assert guard.wait_seconds("192.0.2.2", 0.0) == 0


def test_an_ipv6_network_is_one_source() -> None:
    assert (
        source_key("2001:db8::1") == source_key("2001:db8::ffff:1") == "2001:db8::/64"
    )
    assert source_key("2001:db8:0:1::1") != source_key("2001:db8::1")
    assert source_key("::ffff:192.0.2.1") == "192.0.2.1"
    assert source_key("fe80::1%eth0") == "fe80::/64"
    assert source_key("") == ""


def test_many_sources_together_meet_the_global_limit() -> None:
    guard = GuessThrottle(0.0)
    for n in range(200):
        guard.guessed(f"10.0.0.{n}", 0.0)
    assert guard.wait_seconds("192.0.2.1", 0.0) == pytest.approx(0.05)
    assert guard.wait_seconds("192.0.2.1", 0.06) == 0


def test_the_table_forgets_the_source_that_was_quiet_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throttle, "MAX_SOURCES", 3)
    guard = GuessThrottle(0.0)
    for source in ("a", "b", "c", "a", "d"):
        for _ in range(10):
            guard.guessed(source, 0.0)
    assert len(guard) == 3
    assert guard.wait_seconds("a", 0.0) > 0
    assert guard.wait_seconds("b", 0.0) == 0


@given(st.lists(st.floats(0, 5), max_size=60))
def test_no_schedule_of_guesses_beats_burst_and_rate(pauses: list[float]) -> None:
    guard = GuessThrottle(0.0)
    now, passed = 0.0, 0
    for pause in pauses:
        now += pause
        if guard.wait_seconds("192.0.2.1", now) == 0:
            guard.guessed("192.0.2.1", now)
            passed += 1
    assert passed <= throttle.SOURCE_BURST + now * throttle.SOURCE_PER_SECOND + 1e-6
