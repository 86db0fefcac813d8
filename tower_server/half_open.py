"""Places for streams whose caller the agent has not authenticated yet. Pure counting.

On the sealed face nobody is authenticated before the agent (design 3), so strangers may
hold only so many streams: few enough per cluster that its agent's handshakes are never
all theirs for long, and per source, so that one stranger cannot take a cluster's places
one cluster after the other.
"""

from collections import Counter

__all__ = [
    "MAX_HALF_OPEN_PER_CLUSTER",
    "MAX_HALF_OPEN_PER_SOURCE",
    "HalfOpenPlaces",
    "Place",
]

# Streams that the agent has not authenticated yet. The agent allows 64 handshakes.
MAX_HALF_OPEN_PER_CLUSTER = 64
# From one address; a NAT with many kubectls behind it stays far below.
MAX_HALF_OPEN_PER_SOURCE = 128


class Place:
    """One place; given back once, whatever happens first."""

    def __init__(self, places: "HalfOpenPlaces", source: str, cluster: str) -> None:
        self._places: HalfOpenPlaces | None = places
        self._source = source
        self._cluster = cluster

    def leave(self) -> None:
        """Give it back. Idempotent."""
        places, self._places = self._places, None
        if places is not None:
            places.left(self._source, self._cluster)


class HalfOpenPlaces:
    """Who holds how many places."""

    def __init__(self) -> None:
        # Only of those that hold some: strangers cannot make these grow.
        self.by_source: Counter[str] = Counter()
        self.by_cluster: Counter[str] = Counter()

    def take(self, source: str, cluster: str) -> Place | None:
        """A place, or None when source or cluster have all of theirs."""
        if (
            self.by_source[source] >= MAX_HALF_OPEN_PER_SOURCE
            or self.by_cluster[cluster] >= MAX_HALF_OPEN_PER_CLUSTER
        ):
            return None
        self.by_source[source] += 1
        self.by_cluster[cluster] += 1
        return Place(self, source, cluster)

    def left(self, source: str, cluster: str) -> None:
        """For `Place` only."""
        for counter, key in ((self.by_source, source), (self.by_cluster, cluster)):
            counter[key] -= 1
            if counter[key] <= 0:
                del counter[key]
