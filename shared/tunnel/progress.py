"""Whether what we write still leaves: a deadline on every write. SPEC 8.

Somebody who speaks and does not read holds up everything that waits for him, and pings do not
show it. What we look at, while the connection waits for him: what its transport holds, what
his TCP has acknowledged, and what his session has. If none moves for too long he is dead.
"""

import asyncio

from shared.mux.session import Session
from shared.tunnel.sockets import acknowledged_bytes

__all__ = [
    "LEAST_PROGRESS_BYTES",
    "PROGRESS_EVERY_SECONDS",
    "WRITE_DEADLINE_SECONDS",
    "WriteProgress",
]

# A connection that waits and has not moved a byte for this long belongs to a dead peer,
# whatever still arrives from it.
WRITE_DEADLINE_SECONDS = 4.5

# How often one that waits is looked at.
PROGRESS_EVERY_SECONDS = 0.5

# By less than this from look to look TCP does not move: the kernel of a peer that speaks and
# does not read acknowledges what we answer, some bytes at a time. (16 kbit/s.)
LEAST_PROGRESS_BYTES = 1024


class WriteProgress:
    """Watches one connection while it waits for its peer to take something."""

    def __init__(self) -> None:
        # Set by begin, until it is seen that the connection waits no more.
        self.is_watching = False
        # When something last moved, and how things stood then.
        self.moved_at = 0.0
        self._held_bytes = 0
        self._acked_bytes = 0
        self._acked_count = 0

    def begin(self, transport: asyncio.Transport, session: Session, now: float) -> None:
        """The connection begins to wait; nothing if it does already."""
        if not self.is_watching:
            self.is_watching = True
            self._note(transport, session, now)

    def end(self) -> None:
        """It waits no more."""
        self.is_watching = False

    def is_stuck(
        self, transport: asyncio.Transport, session: Session, now: float
    ) -> bool:
        """Look again, while watching."""
        held, acked, count = self._held_bytes, self._acked_bytes, self._acked_count
        moved_at = self.moved_at
        self._note(transport, session, now)
        if (
            self._held_bytes < held
            or self._acked_bytes >= acked + LEAST_PROGRESS_BYTES
            or self._acked_count > count
        ):
            return False
        self.moved_at = moved_at
        return now - moved_at >= WRITE_DEADLINE_SECONDS

    def _note(self, transport: asyncio.Transport, session: Session, now: float) -> None:
        self.moved_at = now
        self._held_bytes = transport.get_write_buffer_size()
        self._acked_bytes = acknowledged_bytes(transport)
        self._acked_count = session.replay.acked_count
