"""One look at the sessions with one peer: what they have counted, and how their streams stand.

And one at what all sessions of a process hold. Looking costs a few hundred nanoseconds a
stream, and only when somebody looks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shared.mux.budget import WindowBudget
from shared.mux.counters import Counters
from shared.mux.session import Session

__all__ = ["MemoryReading", "TunnelReading", "read_memory", "read_sessions"]


@dataclass(frozen=True, kw_only=True)
class TunnelReading:
    """The sessions of one cluster at one moment."""

    sessions: int
    # Of the newest session that has measured one.
    rtt_seconds: float | None
    # Streams that are open, and those of them that have data and no credit.
    open_streams: int
    stalled_streams: int
    # Written to streams, and not handed to a connection yet.
    queued_bytes: int
    # Arrived, and not taken by who reads the stream.
    unread_bytes: int
    # Promised to senders beyond each stream's first window; counts against the ceilings.
    window_bytes: int
    # Sent, kept until the peer has it; beyond 1 MiB it counts against the ceilings, too.
    kept_bytes: int
    # A copy: it does not change any more.
    counters: Counters


def read_sessions(
    sessions: Iterable[Session], counters: Counters, *, uncounted_target: str
) -> TunnelReading:
    """Look at sessions, oldest first, that count into `counters`.

    Streams to `uncounted_target` are our own (control) and no user's: they are not among the
    open ones.
    """
    count = open_streams = stalled = queued_bytes = unread_bytes = 0
    window_bytes = kept_bytes = 0
    rtt_seconds: float | None = None
    for session in sessions:
        count += 1
        measured = session.liveness.round_trip_seconds
        rtt_seconds = rtt_seconds if measured is None else measured
        kept_bytes += session.replay.kept_bytes
        for stream in session.streams.values():
            open_streams += stream.target != uncounted_target
            stalled += stream.queued_bytes > 0 and stream.send_window.credit_bytes <= 0
            queued_bytes += stream.queued_bytes
            window = stream.receive_window
            unread_bytes += window.received_offset - window.taken_offset
            window_bytes += window.booked_bytes
    return TunnelReading(
        sessions=count,
        rtt_seconds=rtt_seconds,
        open_streams=open_streams,
        stalled_streams=stalled,
        queued_bytes=queued_bytes,
        unread_bytes=unread_bytes,
        window_bytes=window_bytes,
        kept_bytes=kept_bytes,
        counters=counters.copy(),
    )


@dataclass(frozen=True, kw_only=True)
class MemoryReading:
    """What all sessions of this process hold in windows and kept messages, at one moment."""

    used_bytes: int
    ceiling_bytes: int
    # How often a window wanted more than its share.
    held_back: int


def read_memory(budget: WindowBudget) -> MemoryReading:
    """Look at a process's budget."""
    return MemoryReading(
        used_bytes=budget.used_bytes,
        ceiling_bytes=budget.ceiling_bytes,
        held_back=budget.held_back,
    )
