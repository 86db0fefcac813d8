"""How many requests a second go to the host's apiserver: a token bucket. Pure.

The apiserver defends itself too (429, which the client obeys); this keeps us from being the one
who has to be told, as when a thousand Clusters appear at once.
"""

__all__ = ["BURST", "REQUESTS_PER_SECOND", "RequestRate"]

# A thousand new Clusters take four requests each: reconciled within 20 s at this rate, and an
# apiserver on two cores has most of its time for others (it manages over 1,000 of these).
REQUESTS_PER_SECOND = 200.0
# At once after a pause: a join or an admin's order never waits.
BURST = 100


class RequestRate:
    """Says how long each request has to wait for its turn."""

    def __init__(
        self, now: float, per_second: float = REQUESTS_PER_SECOND, burst: int = BURST
    ) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        # What may go out at `_at`. Negative: requests wait already, in order.
        self._available = float(burst)
        self._at = now

    def wait_seconds(self, now: float) -> float:
        """Count a request; returns how long it waits before it goes out."""
        grown = self._available + (now - self._at) * self._per_second
        self._available = min(self._burst, grown) - 1
        self._at = now
        return max(0.0, -self._available / self._per_second)
