"""How many agents may come in at a time: the token bucket behind their proof. Pure.

Ten thousand agents that lost the same server return together. Each costs some milliseconds
(one look into the store, a session, the TLS of its control stream), so without a limit all of
them would be slow and most would time out and come again. With it some hear at once when
to come back, and the times that they hear are spread over as long as it takes.

Only who has proven to be an agent takes a place. That proof costs us 0.4 ms, the TLS handshake
before it more; what strangers can cost us there, the front door bounds.
"""

import math

__all__ = ["HANDSHAKES_PER_SECOND", "HANDSHAKE_BURST", "Admission"]

# Half of one core: the streams of those who are in come first. 10,000 agents take 50 s.
HANDSHAKES_PER_SECOND = 200.0
# All agents of a middling fleet at once, without anybody waiting.
HANDSHAKE_BURST = 400.0
# Nobody is sent away for longer: by then the crowd is through, or we are wrong about it.
MAX_WAIT_SECONDS = 60.0


class Admission:
    """A bucket of handshakes, and the queue of those who were told to come back."""

    def __init__(
        self,
        now: float,
        *,
        rate: float = HANDSHAKES_PER_SECOND,
        burst: float = HANDSHAKE_BURST,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now
        # Until when the places of the coming seconds are promised to others.
        self._promised_until = now

    def wait_seconds(self, now: float) -> int:
        """Take a place: 0, or in how many seconds to ask again.

        Who is sent away gets the next place that is not promised yet. It is not kept for
        anybody: who comes back asks like all others, so that no agent is remembered.
        """
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level >= 1.0:
            self._level -= 1.0
            return 0
        self._promised_until = max(self._promised_until, now) + 1.0 / self._rate
        return math.ceil(min(self._promised_until - now, MAX_WAIT_SECONDS))
