"""Slows guesses down: how many wrong proofs a source, and all sources together, may send.

Only wrong ones count, so a thousand agents that join at once from behind one load balancer are
not held up. A secret has 160 bits and is safe anyway; this keeps guessing from costing us work
and log lines. The price is known: whoever floods us with wrong proofs can delay joins (never the
agents that have joined), because beyond the global limit everybody waits.

Time comes in as seconds of any monotonic clock.
"""

import dataclasses
import ipaddress
from collections import OrderedDict

__all__ = ["GuessThrottle", "MAX_SOURCES", "source_key"]

# One source: ten wrong proofs at once (somebody tries the strings that lie around), then one
# in six seconds: slower than a crash-looping pod restarts, so only guessing is held up.
SOURCE_BURST = 10.0
SOURCE_PER_SECOND = 1 / 6

# All sources together. A proof costs about 0.2 ms to check: at this rate below 1 % of a core.
GLOBAL_BURST = 200.0
GLOBAL_PER_SECOND = 20.0

# Sources that are remembered; the one that was quiet for longest is forgotten first. About
# 200 bytes each. A guesser with more addresses than this meets the global limit.
MAX_SOURCES = 4096


@dataclasses.dataclass
class _Bucket:
    """A token bucket: holds up to `burst`, refilled at `per_second`."""

    burst: float
    per_second: float
    level: float
    filled_at: float

    def seconds_until_one(self, now: float) -> float:
        """Refill, and return how long until the bucket holds one token; 0 if it does."""
        passed = max(0.0, now - self.filled_at)
        self.level = min(self.burst, self.level + passed * self.per_second)
        self.filled_at = now
        return max(0.0, (1.0 - self.level) / self.per_second)

    def take(self, now: float) -> None:
        """Take one token; the level may not fall below zero."""
        self.seconds_until_one(now)
        self.level = max(0.0, self.level - 1.0)


class GuessThrottle:
    """Counts wrong proofs. Ask `wait_seconds` before checking a proof, tell `guessed` if wrong."""

    def __init__(self, now: float) -> None:
        # Sources with a wrong proof on record, the longest quiet first. <= MAX_SOURCES.
        self._sources: OrderedDict[str, _Bucket] = OrderedDict()
        self._everybody = _Bucket(GLOBAL_BURST, GLOBAL_PER_SECOND, GLOBAL_BURST, now)

    def wait_seconds(self, source: str, now: float) -> float:
        """Return how long `source` has to wait before its next proof is looked at; 0 for now."""
        bucket = self._sources.get(source_key(source))
        own = bucket.seconds_until_one(now) if bucket else 0.0
        return max(own, self._everybody.seconds_until_one(now))

    def guessed(self, source: str, now: float) -> None:
        """Account for a wrong proof of `source`."""
        key = source_key(source)
        bucket = self._sources.pop(key, None)
        if bucket is None:
            bucket = _Bucket(SOURCE_BURST, SOURCE_PER_SECOND, SOURCE_BURST, now)
            if len(self._sources) >= MAX_SOURCES:
                self._sources.popitem(last=False)
        self._sources[key] = bucket
        bucket.take(now)
        self._everybody.take(now)

    def __len__(self) -> int:
        """Return how many sources are remembered."""
        return len(self._sources)


def source_key(address: str) -> str:
    """Return what counts as one source: an IPv4 address, or the /64 of an IPv6 address.

    A single IPv6 customer commands a whole /64. What is no address counts as itself.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
