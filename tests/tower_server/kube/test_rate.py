"""Covered: a burst goes at once, then the rate holds, those who wait do so in order, a pause refills."""

from tower_server.kube.rate import RequestRate


def test_a_burst_waits_for_nothing_and_then_each_waits_its_turn() -> None:
    rate = RequestRate(100.0, per_second=10.0, burst=3)
    waits = [rate.wait_seconds(100.0) for _ in range(6)]
    assert waits[:3] == [0.0, 0.0, 0.0]
    assert [round(w, 6) for w in waits[3:]] == [0.1, 0.2, 0.3]


def test_over_time_it_is_the_rate_and_no_more() -> None:
    rate = RequestRate(0.0, per_second=10.0, burst=1)
    now = 0.0
    for _ in range(101):
        now += rate.wait_seconds(now)
    assert round(now, 6) == 10.0


def test_a_pause_refills_the_burst_and_not_more() -> None:
    rate = RequestRate(0.0, per_second=10.0, burst=2)
    for _ in range(4):
        rate.wait_seconds(0.0)
    waits = [rate.wait_seconds(1000.0) for _ in range(3)]
    assert waits[:2] == [0.0, 0.0] and waits[2] > 0
