"""Is the peer alive? Signs of life, pings on a silent link, round-trip times. SPEC 8.

Any byte that arrives is a sign of life. Pings go out when nothing came for a while, and
now and then on a busy link to keep the round-trip time true. Arithmetic only; the
times are whatever monotonic seconds the caller uses.
"""

__all__ = [
    "ANSWER_SECONDS",
    "CLOCK_STEP_SECONDS",
    "DEAD_AFTER_SECONDS",
    "IDLE_ROUND_TRIP_EVERY_SECONDS",
    "PING_AFTER_SECONDS",
    "ROUND_TRIP_EVERY_SECONDS",
    "SERVER_PING_AFTER_SECONDS",
    "Liveness",
]

# A link on which nothing came for this long gets a PING of the agent; the answer and the
# question are signs of life for either end. The server asks a little later, so that on an
# idle link it never has to: of ten thousand agents that is half the work.
PING_AFTER_SECONDS = 2.0
SERVER_PING_AFTER_SECONDS = 2.5

# ... and after this much silence the peer is dead: time for the later ping, a lost
# packet's retransmissions (0.2 s, 0.4 s, ...) and a slow round trip, and under the 5 s that we
# promise.
DEAD_AFTER_SECONDS = 4.5

# A PING must have gone unanswered for this long before silence means death: time to send
# the first one. A process that itself was stopped finds long silence and proves nothing.
ANSWER_SECONDS = DEAD_AFTER_SECONDS - SERVER_PING_AFTER_SECONDS

# How old the round-trip time may grow on a link that is never silent ...
ROUND_TRIP_EVERY_SECONDS = 5.0
# ... and on one that carries nothing but the other end's PINGs, where nobody needs it.
IDLE_ROUND_TRIP_EVERY_SECONDS = 30.0

# Clocks count in steps, and a machine's own loopback is hardly longer than one. It took some
# time: nobody should divide by it, or read 0.
CLOCK_STEP_SECONDS = 0.000_02


class Liveness:
    """When something last came and went, and how long a round trip takes."""

    def __init__(
        self, now: float, ping_after_seconds: float = PING_AFTER_SECONDS
    ) -> None:
        self._ping_after_seconds = ping_after_seconds
        # When bytes last arrived. The shell sets it for every read, also of half a message.
        self.received_at = now
        # When a message last left; only for people who look.
        self.sent_at = now
        # When the last PING left, None before the first.
        self._pinged_at: float | None = None
        # When to measure the next round trip if the link is not silent before.
        self._measure_at = now
        # Number of the PING that is not answered yet, and when it left.
        self._waiting: tuple[int, float] | None = None
        # 0 is not used: a PING of that number only asks for an ACK.
        self._count = 0
        # The last round trip that was measured; None before the first PONG.
        self.round_trip_seconds: float | None = None
        # The smallest one: the path without queues.
        self.min_round_trip_seconds: float | None = None

    def received(self, now: float) -> None:
        self.received_at = now

    def sent(self, now: float) -> None:
        self.sent_at = now

    def start_over(self, now: float) -> None:
        """On a new connection: nothing that was measured is true any more.

        Except the count: a PONG of the old connection may be sent again on this one.
        """
        self.received_at = self.sent_at = now
        self._pinged_at = self._waiting = None
        self.round_trip_seconds = self.min_round_trip_seconds = None

    def next_timer(self) -> float:
        if self._waiting is not None:
            return max(
                self.received_at + DEAD_AFTER_SECONDS,
                self._waiting[1] + ANSWER_SECONDS,
            )
        if self._pinged_at is None:
            return self.received_at  # at once, to know the round-trip time
        return min(self.received_at + self._ping_after_seconds, self._measure_at)

    def is_dead(self, now: float) -> bool:
        return (
            self._waiting is not None
            and now - self.received_at >= DEAD_AFTER_SECONDS
            and now - self._waiting[1] >= ANSWER_SECONDS
        )

    def forgive(self, now: float) -> None:
        """Start over: we ourselves were not running, so the silence was ours."""
        self.received_at = now
        self._waiting = None

    def ping_is_due(self, now: float) -> bool:
        if self._waiting is not None:
            return False
        return self._must_ask(now) or now >= self._measure_at

    def _must_ask(self, now: float) -> bool:
        return (
            self._pinged_at is None
            or now - self.received_at >= self._ping_after_seconds
        )

    def put_off(self, now: float) -> bool:
        """On a link that is idle but not silent: measure later, if what we know may grow older.

        Call it when a PING is due, and send that if this says no.
        """
        pinged_at = self._pinged_at
        if pinged_at is None or self._must_ask(now):
            return False
        if now - pinged_at >= IDLE_ROUND_TRIP_EVERY_SECONDS:
            return False
        self._measure_at = now + ROUND_TRIP_EVERY_SECONDS
        return True

    def ping(self, now: float) -> int:
        """Note that a PING leaves; returns what it must carry."""
        self._count += 1
        self._pinged_at = now
        self._measure_at = now + ROUND_TRIP_EVERY_SECONDS
        self._waiting = (self._count, now)
        return self._count

    def pong(self, opaque: int, now: float) -> float | None:
        """Take in an answer, return the round trip; one not asked for changes nothing."""
        if self._waiting is None or self._waiting[0] != opaque:
            return None
        sample = max(now - self._waiting[1], CLOCK_STEP_SECONDS)
        self._waiting = None
        self.round_trip_seconds = sample
        best = self.min_round_trip_seconds
        self.min_round_trip_seconds = sample if best is None else min(best, sample)
        return sample
