"""How much of a session may be under way: about what its path holds, and no more. SPEC 6.

Whatever is sent beyond the path's own volume (its rate times its shortest round trip) only
makes a queue somewhere on the way, and in a queue nothing can be overtaken. So we watch the
ACKs and keep 1.25 times that volume unacknowledged: the quarter keeps the path full
and, as it grows the moment that more fits, finds out when more does.

    rate        the largest delivered rate of the last rounds. Of a session that had nothing
                to send a rate proves nothing, unless it is larger
    round trip  the smallest of some seconds. Our own queue is in every sample, so now and then
                we let the queue run empty and look again
    rounds      from a message's leaving to its ACK; counted by bytes, not by a clock

The ideas are those of BBR (Cardwell and others, 2016) for a sender that sees messages and
ACKs instead of packets, with TCP below it that deals with losses.
"""

from math import inf

__all__ = [
    "ASK_BELOW_BYTES",
    "FLOOR_BYTES",
    "GAIN",
    "LEAST_ROOM",
    "ROUND_TRIP_SECONDS",
    "SHORT_PATH_BYTES",
    "SHORT_PATH_SECONDS",
    "START_BYTES",
    "InFlight",
]

# Before anything is known: BBR and TCP begin with ten packets, but 256 KiB is one window of
# one stream, and 20 ms of 100 Mbit/s.
START_BYTES = 256 * 1024

# Of the path's volume. Less than 1.2 loses rate where a loop is late now and then.
GAIN = 1.25

# While the rate still doubles each round, as much as doubles it (BBR: 2/ln 2) ...
START_GAIN = 2.89
# ... which is over when it has grown by less than this, for so many rounds.
START_GROWTH = 1.25
START_ROUNDS = 3

# Never less: the overhead of smaller messages would be the limit, on a path of 64 kbit/s too.
FLOOR_BYTES = 64 * 1024

# On a short path most of a round trip is what busy processes at either end add, and how much
# that is changes from one millisecond to the next. So it always holds what goes in this time ...
SHORT_PATH_SECONDS = 0.010
# ... but no more than this, which takes 2 ms at the rate of one busy core.
SHORT_PATH_BYTES = 1024 * 1024

# The largest rate is that of this window and the one before it, each so many rounds and at
# least so long: a pause of some milliseconds on a path of one must not count as slow.
RATE_ROUNDS = 2
RATE_SECONDS = 1.0

# A shortest round trip that was not seen again for this long may have become longer.
ROUND_TRIP_SECONDS = 10.0
# Then the queue runs empty: with this part of the volume under way, for one round.
DRAIN_GAIN = 0.5

# Peers send an ACK by themselves after 64 KiB (SPEC 5.10). A smaller volume than this needs
# more of them: then they are asked, each time that an eighth of the limit has left.
ASK_BELOW_BYTES = 512 * 1024

# A limit that lets go a few bytes with each ACK would make messages of a few bytes. So there is
# room for nothing, or for this part of the limit: a message of full size.
LEAST_ROOM = 1 / 8

# No clock and no path is exact below this, and nobody should divide by zero.
MIN_SECONDS = 0.000_02


class InFlight:
    """Watches what a session sends and what is acknowledged; says how much may be under way."""

    __slots__ = (
        "_acked_count",
        "_app_limited_until",
        "_delivered_at",
        "_delivered_bytes",
        "_drain_ends_at",
        "_drained_seconds",
        "_full_rate",
        "_full_rounds",
        "_is_rising",
        "_rate_before",
        "_rate_now",
        "_records",
        "_round_ends_at",
        "_rounds",
        "_seen_at",
        "_unasked_bytes",
        "_window_began_at",
        "bytes",
        "is_draining",
        "is_starting",
        "limit_bytes",
        "round_trip_seconds",
    )

    def __init__(self) -> None:
        # Sent and not acknowledged, of what `sent` was told.
        self.bytes = 0
        # No more than this should be.
        self.limit_bytes = START_BYTES
        # The smallest of the last seconds; None before the first sample.
        self.round_trip_seconds: float | None = None
        # When that was last seen (or something smaller).
        self._seen_at = 0.0
        # One for each message under way: when it left, its size, what had been delivered then
        # and when, and whether the session was about to have nothing to send.
        self._records: list[tuple[float, int, int, float, bool]] = []
        # Messages of the session acknowledged; the first record is the next one.
        self._acked_count = 0
        self._delivered_bytes = 0
        self._delivered_at = 0.0
        # Until so much is delivered a rate is what the session wanted, not what the path gives.
        self._app_limited_until = 0
        # Largest rates, in bytes a second: of the window that runs and of the one before.
        self._rate_now = self._rate_before = 0.0
        self._rounds = 0
        self._window_began_at = 0.0
        # A round is over when something that left after its beginning is delivered.
        self._round_ends_at = 0
        # The rate still doubles; the rate of the last round that it grew in; rounds since.
        self.is_starting = True
        self._full_rate = 0.0
        self._full_rounds = 0
        # The queue is running empty: until something is delivered that left behind so much.
        self.is_draining = False
        self._drain_ends_at: int | None = None
        self._drained_seconds = 0.0
        # Left since the peer was last asked for an ACK.
        self._unasked_bytes = 0
        # After a drain the limit rises with the ACKs: at once would be a burst, and a queue.
        self._is_rising = False

    @property
    def rate(self) -> float:
        """Bytes a second; 0 before the first sample."""
        return max(self._rate_now, self._rate_before)

    @property
    def room_bytes(self) -> int:
        """How much data may leave now; 0 when an ACK must come first."""
        room = self.limit_bytes - self.bytes
        if room <= 0:
            return 0
        return max(room, int(self.limit_bytes * LEAST_ROOM))

    def asks(self) -> bool:
        """Whether the message that leaves now should ask for an ACK; it then must."""
        limit = self.limit_bytes
        if limit >= ASK_BELOW_BYTES or self._unasked_bytes * 8 < limit:
            return False
        if self.bytes * 4 < limit:
            return False
        self._unasked_bytes = 0
        return True

    def start_over(self, sent_count: int) -> None:
        """On a new connection: another path, whose first message has this number."""
        self.__init__()  # type: ignore[misc]
        self._acked_count = sent_count

    def sent(self, size_bytes: int, now: float, *, more: bool) -> None:
        """A message leaves; `more` says that data waits behind it."""
        if not self._records:
            self._delivered_at = now  # idle time is nobody's slowness
        self.bytes += size_bytes
        self._unasked_bytes += size_bytes
        if not more:
            self._app_limited_until = self._delivered_bytes + self.bytes
        self._records.append(
            (
                now,
                size_bytes,
                self._delivered_bytes,
                self._delivered_at,
                self._app_limited_until > self._delivered_bytes,
            )
        )

    def acknowledged(self, count: int, now: float) -> None:
        """The peer has `count` messages of the session; an old number changes nothing."""
        records, size = self._records, 0
        fresh = count - self._acked_count
        if fresh <= 0:
            return
        self._acked_count = count
        last = records[fresh - 1]
        for record in records[:fresh]:
            size += record[1]
        del records[:fresh]
        self.bytes -= size
        self._delivered_bytes += size
        self._delivered_at = now
        left_at, _, delivered_bytes, delivered_at, app_limited = last
        self.round_trip(now - left_at, now)
        # Both the way out and the ACKs take their time; the longer one is the path's.
        seconds = now - delivered_at
        rate = (self._delivered_bytes - delivered_bytes) / max(seconds, MIN_SECONDS)
        new_round = delivered_bytes >= self._round_ends_at
        if new_round:
            self._round_ends_at = self._delivered_bytes
        self._take_rate(rate, now, new_round=new_round, app_limited=app_limited)
        if self.is_draining:
            self._drain(delivered_bytes, now)
        self._set_limit(size)

    def round_trip(self, seconds: float, now: float) -> None:
        """A sample: of an ACK, or of a PONG, which waits for nothing."""
        seconds = max(seconds, MIN_SECONDS)
        best = self.round_trip_seconds
        if best is None or seconds <= best:
            self.round_trip_seconds, self._seen_at = seconds, now
        if self.is_draining:
            self._drained_seconds = min(self._drained_seconds, seconds)
        elif now - self._seen_at > ROUND_TRIP_SECONDS:
            self.is_draining = True
            self._drain_ends_at = None
            self._drained_seconds = seconds
            self._set_limit(0)

    def _take_rate(
        self, rate: float, now: float, *, new_round: bool, app_limited: bool
    ) -> None:
        if app_limited and rate <= self.rate:
            return
        if new_round and not self.is_draining:
            self._rounds += 1
            if (
                self._rounds >= RATE_ROUNDS
                and now - self._window_began_at > RATE_SECONDS
            ):
                self._rate_before, self._rate_now = self._rate_now, 0.0
                self._rounds, self._window_began_at = 0, now
        self._rate_now = max(self._rate_now, rate)
        if self.is_starting and new_round and not app_limited:
            self._look_for_the_end_of_the_start()

    def _look_for_the_end_of_the_start(self) -> None:
        if self.rate >= self._full_rate * START_GROWTH:
            self._full_rate, self._full_rounds = self.rate, 0
        else:
            self._full_rounds += 1
            self.is_starting = self._full_rounds < START_ROUNDS

    def _drain(self, delivered_bytes: int, now: float) -> None:
        """Look whether the queue has run empty, and has been seen empty for a round."""
        if self._drain_ends_at is None:
            if self.bytes <= self.limit_bytes:
                self._drain_ends_at = self._delivered_bytes
                self._drained_seconds = inf
        elif delivered_bytes >= self._drain_ends_at:
            self.is_draining, self._is_rising = False, True
            self.round_trip_seconds, self._seen_at = self._drained_seconds, now

    def _set_limit(self, acked_bytes: int) -> None:
        rate, round_trip = self.rate, self.round_trip_seconds
        if not rate or round_trip is None:
            return
        volume = rate * round_trip
        if self.is_draining:
            limit = DRAIN_GAIN * volume
        elif self.is_starting:
            limit = max(START_GAIN * volume, self.limit_bytes)
        else:
            limit = max(GAIN * volume, min(rate * SHORT_PATH_SECONDS, SHORT_PATH_BYTES))
            if self._is_rising:
                self._is_rising = limit > self.limit_bytes + acked_bytes
                limit = min(limit, self.limit_bytes + acked_bytes)
        self.limit_bytes = max(int(limit), FLOOR_BYTES)
