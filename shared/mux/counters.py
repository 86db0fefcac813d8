"""What a session counts for people who look: plain integers, read when somebody asks.

On the way of a byte there is one addition a message, and nothing else: what can be seen by
looking at the streams (queues, stalls) is not counted but looked at, in `readings`.
"""

from collections import defaultdict
from typing import Protocol

from shared.errors import Code

__all__ = ["Counters"]


class _Counts(Protocol):
    """What `Counters.take_over` needs of a session."""

    counters: "Counters"


class Counters:
    """Totals of one session, or of several that share one (the sessions of a cluster)."""

    __slots__ = (
        "opened_by_agent",
        "opened_by_server",
        "received_bytes",
        "resent_bytes",
        "resets_received",
        "resets_sent",
        "resumes",
        "sent_bulk_bytes",
        "sent_bytes",
        "window_stalls",
    )

    def __init__(self) -> None:
        # Messages of the tunnel protocol, frame headers included.
        self.sent_bytes = 0
        self.received_bytes = 0
        # Of what we sent: data of streams that were bulk then (SPEC 6), without headers.
        self.sent_bulk_bytes = 0
        # Streams, by which end opened them.
        self.opened_by_agent = 0
        self.opened_by_server = 0
        # Streams that we reset; and those that the peer did, or that ended with their session.
        self.resets_sent: defaultdict[Code, int] = defaultdict(int)
        self.resets_received: defaultdict[Code, int] = defaultdict(int)
        # How often a session went on over another connection, and what was sent again for it.
        self.resumes = 0
        self.resent_bytes = 0
        # How often a stream that had data and no credit got some: each stall counts at its end.
        self.window_stalls = 0

    def stream_opened(self, stream_id: int) -> None:
        if stream_id % 2:  # SPEC 5.2: the agent's numbers are odd
            self.opened_by_agent += 1
        else:
            self.opened_by_server += 1

    def add(self, other: "Counters") -> None:
        """Add what another one has counted."""
        self.sent_bytes += other.sent_bytes
        self.sent_bulk_bytes += other.sent_bulk_bytes
        self.received_bytes += other.received_bytes
        self.opened_by_agent += other.opened_by_agent
        self.opened_by_server += other.opened_by_server
        for code, count in other.resets_sent.items():
            self.resets_sent[code] += count
        for code, count in other.resets_received.items():
            self.resets_received[code] += count
        self.resumes += other.resumes
        self.resent_bytes += other.resent_bytes
        self.window_stalls += other.window_stalls

    def take_over(self, session: _Counts) -> None:
        """Have a session count here from now on, with what it has counted before. Idempotent."""
        if session.counters is not self:
            self.add(session.counters)
            session.counters = self

    def copy(self) -> "Counters":
        """The totals as they are now, for somebody who reads them later."""
        copied = Counters()
        copied.add(self)
        return copied
