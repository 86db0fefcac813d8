"""How much may be under way, on simulated paths with times given by hand.

Covered: the volume is found within some round trips and kept at a quarter more, on slow and
on fast paths; a path that grows, shrinks or becomes longer; the queue that we make ourselves
is not taken for the path, for minutes; sessions with little to send; short paths; asking for
ACKs; a new connection; that nothing can wait for ever.
"""

from collections import deque
from math import inf

import pytest

from shared.mux.in_flight import (
    ASK_BELOW_BYTES,
    FLOOR_BYTES,
    GAIN,
    LEAST_ROOM,
    SHORT_PATH_BYTES,
    START_BYTES,
    InFlight,
)
from shared.mux.replay import ACK_AFTER_BYTES

MEGABYTE = 10**6


class Path:
    """A link with a rate, a round trip and an unlimited queue; a sender; prompt ACKs."""

    def __init__(
        self, rate: float, round_trip: float, *, message: int = 16_384
    ) -> None:
        self.rate, self.round_trip, self.message = rate, round_trip, message
        self.now = 1000.0
        self.in_flight = InFlight()
        self.sent = 0
        self.arrived = 0
        # When each message's ACK is back, and its number.
        self.acks: deque[tuple[float, int]] = deque()
        self.free_at = self.now
        # The longest queue that a message has found, in seconds.
        self.longest_queue = 0.0

    @property
    def volume(self) -> float:
        """What is under way when one message follows the other without a queue."""
        return self.rate * self.round_trip + self.message

    def run(self, seconds: float, *, want: float | None = None) -> None:
        """Send as much as may be, or at most `want` bytes a second."""
        end, began, left = self.now + seconds, self.now, 0.0
        self.longest_queue, self.arrived = 0.0, 0
        while self.now < end:
            budget = inf if want is None else (self.now - began) * want
            while self.in_flight.room_bytes and left + self.message <= budget:
                left += self.message
                self._send(more=left + self.message <= budget)
            if self.acks:
                at, count = self.acks.popleft()
                self.now = max(self.now, at)
                self.in_flight.acknowledged(count, self.now)
                self.arrived += self.message
            elif want is not None and self.in_flight.room_bytes:
                self.now += self.message / want
            else:
                raise AssertionError("nothing is under way, and nothing may be sent")

    def _send(self, *, more: bool) -> None:
        self.sent += 1
        self.in_flight.sent(self.message, self.now, more=more)
        self.longest_queue = max(self.longest_queue, self.free_at - self.now)
        self.free_at = max(self.free_at, self.now) + self.message / self.rate
        self.acks.append((self.free_at + self.round_trip, self.sent))


PATHS = [
    (12.5 * MEGABYTE, 0.050),
    (125 * MEGABYTE, 0.200),
    (2.5 * MEGABYTE, 0.300),
    (1.25 * MEGABYTE, 0.080),
]


@pytest.mark.parametrize(("rate", "round_trip"), PATHS)
def test_the_volume_of_a_path_is_found_and_kept_a_quarter_above(
    rate: float, round_trip: float
) -> None:
    path = Path(rate, round_trip)
    path.run(30 * round_trip + 3)
    assert not path.in_flight.is_starting
    assert path.in_flight.limit_bytes == pytest.approx(
        max(GAIN * path.volume, FLOOR_BYTES), rel=0.05
    )
    path.run(20)
    assert path.arrived >= 0.97 * rate * 20
    # The quarter, and as much again for the round after the queue was let run empty.
    assert path.longest_queue < 0.55 * round_trip + 2 * path.message / rate


def test_the_start_doubles_and_stops_at_thrice_the_volume() -> None:
    path = Path(12.5 * MEGABYTE, 0.050)
    assert path.in_flight.limit_bytes == START_BYTES
    path.run(0.6)
    assert path.longest_queue < 2.1 * path.round_trip
    path = Path(125 * MEGABYTE, 0.100)
    path.run(1.0)
    assert path.in_flight.limit_bytes > path.volume


def test_our_own_queue_is_never_taken_for_the_path() -> None:
    path = Path(12.5 * MEGABYTE, 0.050)
    for _ in range(30):
        path.run(10)
        assert path.arrived >= 0.96 * path.rate * 10
    assert path.in_flight.round_trip_seconds == pytest.approx(0.051, rel=0.1)
    assert path.in_flight.limit_bytes < 1.4 * path.volume


def test_a_path_that_becomes_faster_is_filled_again() -> None:
    path = Path(12.5 * MEGABYTE, 0.050)
    path.run(3)
    path.rate *= 8
    path.run(2)
    path.run(3)
    assert path.arrived >= 0.95 * path.rate * 3


def test_a_path_that_becomes_slower_is_not_flooded_for_long() -> None:
    path = Path(100 * MEGABYTE, 0.050)
    path.run(3)
    path.rate /= 8
    path.run(5)
    path.run(3)
    assert path.longest_queue < 0.55 * path.round_trip
    assert path.arrived >= 0.95 * path.rate * 3


def test_a_path_that_becomes_longer_is_filled_again() -> None:
    path = Path(12.5 * MEGABYTE, 0.050)
    path.run(3)
    path.round_trip = 0.150
    path.run(25)
    path.run(3)
    assert path.arrived >= 0.95 * path.rate * 3


def test_a_session_with_little_to_send_proves_nothing_about_its_path() -> None:
    path = Path(12.5 * MEGABYTE, 0.050)
    path.run(3)
    limit = path.in_flight.limit_bytes
    path.run(60, want=50_000)
    assert path.in_flight.limit_bytes == pytest.approx(limit, rel=0.1)
    fresh = Path(12.5 * MEGABYTE, 0.050)
    fresh.run(10, want=50_000)
    assert fresh.in_flight.is_starting and fresh.in_flight.limit_bytes >= START_BYTES


def test_a_short_path_holds_what_busy_processes_need() -> None:
    path = Path(600 * MEGABYTE, 0.000_1, message=131_072)
    path.run(3)
    assert path.in_flight.limit_bytes >= SHORT_PATH_BYTES
    assert path.arrived >= 0.97 * path.rate * 3


def test_what_may_leave_is_nothing_or_worth_a_message() -> None:
    in_flight = InFlight()
    in_flight.sent(START_BYTES - 1, 1.0, more=True)
    assert in_flight.room_bytes == START_BYTES * LEAST_ROOM
    in_flight.sent(1, 1.0, more=True)
    assert in_flight.room_bytes == 0


def test_what_a_peer_need_not_acknowledge_never_fills_the_limit() -> None:
    """Else both would wait: we for its ACK, it for more to acknowledge."""
    assert FLOOR_BYTES >= ACK_AFTER_BYTES
    assert ASK_BELOW_BYTES >= 2 * ACK_AFTER_BYTES


def test_acks_are_asked_for_where_the_peers_own_come_too_seldom() -> None:
    path = Path(1.25 * MEGABYTE, 0.080)
    path.run(5)
    in_flight, asked = path.in_flight, []
    in_flight.acknowledged(path.sent, path.now)
    limit = in_flight.limit_bytes
    assert limit < ASK_BELOW_BYTES
    for number in range(limit // 4096):
        if in_flight.asks():
            asked.append(number * 4096)
        in_flight.sent(4096, path.now, more=True)
    assert asked[0] <= limit / 4 + 2 * 4096
    steps = [after - before for before, after in zip(asked, asked[1:], strict=False)]
    assert max(steps) <= limit / 8 + 4096 and min(steps) >= limit / 8
    path = Path(125 * MEGABYTE, 0.080)
    path.run(5)
    assert not path.in_flight.asks()


def test_a_new_connection_is_another_path() -> None:
    path = Path(12.5 * MEGABYTE, 0.050)
    path.run(3)
    in_flight = path.in_flight
    in_flight.start_over(path.sent)
    assert (in_flight.bytes, in_flight.limit_bytes) == (0, START_BYTES)
    assert in_flight.round_trip_seconds is None and in_flight.is_starting
    in_flight.acknowledged(path.sent - 1, path.now)  # sent before, acknowledged now
    assert in_flight.bytes == 0
    in_flight.sent(1000, path.now, more=False)
    in_flight.acknowledged(path.sent + 1, path.now + 0.01)
    assert in_flight.bytes == 0 and in_flight.round_trip_seconds == pytest.approx(0.01)


def test_a_clock_that_stands_still_breaks_nothing() -> None:
    in_flight = InFlight()
    for number in range(1, 100):
        in_flight.sent(10_000, 5.0, more=True)
        in_flight.acknowledged(number, 5.0)
        in_flight.round_trip(0.0, 5.0)
    assert in_flight.limit_bytes >= FLOOR_BYTES and in_flight.room_bytes > 0
