"""When to dial again: the schedule of SPEC 8, as arithmetic.

Quick at first, because most losses are short and every second counts for whoever waits;
then slower and spread out, because ten thousand agents may have lost the same server.
"""

import random

__all__ = [
    "ANSWER_OVERLAP_SECONDS",
    "DIAL_OVERLAP_SECONDS",
    "DIAL_TIMEOUT_SECONDS",
    "MAX_RETRY_AFTER_SECONDS",
    "QUICK_FOR_SECONDS",
    "STABLE_AFTER_SECONDS",
    "Reconnect",
]

# For so long after a loss an agent dials quickly.
QUICK_FOR_SECONDS = 60.0
QUICK_DELAY_SECONDS = 0.5
# A dial that has not connected after this does not hold up the next one.
DIAL_OVERLAP_SECONDS = 1.0
# ... and one that has, so long after that: a server to which thousands return has taken the
# call, and is busy. To call again and again would only make it busier.
ANSWER_OVERLAP_SECONDS = 3.0
# ... and is given up after this: four round trips of a second, and a lost packet.
DIAL_TIMEOUT_SECONDS = 10.0
# Ceilings of the jittered delay afterwards.
FIRST_CEILING_SECONDS = 1.0
LAST_CEILING_SECONDS = 30.0
# What a server may ask for at most; more would be an outage by one bad answer.
MAX_RETRY_AFTER_SECONDS = 300.0
# How much is added to what the server asked for, so that those it asked do not return together.
RETRY_AFTER_JITTER = 0.25
# A tunnel that ends sooner is one more dial that came to nothing: else a server that takes
# every agent and drops it (out of memory, too many sessions) would be dialled quickly for ever.
STABLE_AFTER_SECONDS = 5.0


class Reconnect:
    """Delays between dials. `now` is any clock that only goes forward."""

    def __init__(self, now: float, rng: random.Random) -> None:
        self._random = rng
        # When the tunnel was lost, or the agent started.
        self._lost_at = now
        self._ceiling_seconds = FIRST_CEILING_SECONDS
        # When the present or last tunnel came up; None before the first.
        self._connected_at: float | None = None
        # No dial before this: the server asked for it.
        self._not_before = now
        # The first dial, and that after a clean GOAWAY, is at once.
        self._at_once = True

    def connected(self, now: float) -> None:
        """A tunnel is up."""
        self._connected_at = now
        self._not_before = now

    def lost(self, now: float, *, clean: bool) -> None:
        """The tunnel is gone; `clean` after a GOAWAY."""
        since = self._connected_at
        if since is not None and now - since >= STABLE_AFTER_SECONDS:
            self._lost_at = now
            self._ceiling_seconds = FIRST_CEILING_SECONDS
            self._at_once = clean
        else:
            self._at_once = False

    def asked(self, now: float, seconds: float) -> None:
        """The server said "come back in n s"."""
        asked = min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)
        asked *= 1.0 + self._random.uniform(0.0, RETRY_AFTER_JITTER)
        self._not_before = max(self._not_before, now + asked)

    def delay_seconds(self, now: float) -> float:
        """How long to wait before the next dial. Ask once for each."""
        return max(self._own_delay_seconds(now), self._not_before - now)

    def _own_delay_seconds(self, now: float) -> float:
        if self._at_once:
            self._at_once = False
            return 0.0
        if now - self._lost_at < QUICK_FOR_SECONDS:
            return self._random.uniform(0.0, QUICK_DELAY_SECONDS)
        delay = self._random.uniform(0.0, self._ceiling_seconds)
        self._ceiling_seconds = min(self._ceiling_seconds * 2, LAST_CEILING_SECONDS)
        return delay
