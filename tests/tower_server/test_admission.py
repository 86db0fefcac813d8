"""Admission of handshakes.

Covered: a burst gets in at once, the rest is spread over the time that it takes, waits are
bounded, and a crowd that comes back when it was told is through without a stampede.
"""

import random
from collections import Counter

from tower_server.admission import (
    HANDSHAKE_BURST,
    HANDSHAKES_PER_SECOND,
    MAX_WAIT_SECONDS,
    Admission,
)


def test_a_burst_gets_in_and_the_next_is_told_when_to_come() -> None:
    admission = Admission(0.0, rate=10, burst=5)
    assert [admission.wait_seconds(0.0) for _ in range(5)] == [0] * 5
    assert [admission.wait_seconds(0.0) for _ in range(11)] == [1] * 10 + [2]


def test_places_come_back_with_time_but_not_more_than_a_burst() -> None:
    admission = Admission(0.0, rate=10, burst=5)
    for _ in range(5):
        admission.wait_seconds(0.0)
    assert admission.wait_seconds(0.1) == 0
    assert admission.wait_seconds(0.1) > 0
    assert [admission.wait_seconds(1000.0) for _ in range(6)] == [0] * 5 + [1]


def test_nobody_is_sent_away_for_ever() -> None:
    admission = Admission(0.0, rate=1, burst=1)
    waits = [admission.wait_seconds(0.0) for _ in range(1000)]
    assert max(waits) == MAX_WAIT_SECONDS


def test_ten_thousand_agents_are_in_within_a_minute_and_a_half_without_a_stampede() -> (
    None
):
    """Each comes back when it was told, with the jitter of SPEC 8."""
    rng = random.Random(7)
    admission = Admission(0.0)
    due = [(rng.uniform(0.0, 0.5), agent) for agent in range(10_000)]
    let_in: list[float] = []
    asked: Counter[int] = Counter()
    while due:
        due.sort()
        now, agent = due.pop(0)
        asked[agent] += 1
        wait = admission.wait_seconds(now)
        if wait:
            due.append((now + wait * rng.uniform(1.0, 1.25), agent))
        else:
            let_in.append(now)
    assert let_in[-1] < 90
    assert max(asked.values()) <= 6
    # In no second more than the rate, after the burst.
    per_second = Counter(int(at) for at in let_in)
    later = [count for second, count in per_second.items() if second > 0]
    assert max(later) <= HANDSHAKES_PER_SECOND + HANDSHAKE_BURST
