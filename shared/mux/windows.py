"""Flow control of one stream: how far each side may send, and how far it has arrived.

Everything is an absolute offset from the stream's first byte, so that repeating a
message changes nothing and a resumed session needs no second arithmetic. Nothing here
knows frames or sockets: callers pass offsets and act on what comes back. SPEC 6.
"""

from shared.errors import FlowControlError, InvalidState, PeerProtocolError

__all__ = [
    "INITIAL_WINDOW_BYTES",
    "MAX_WINDOW_BYTES",
    "ReceiveWindow",
    "SendWindow",
]

# Keeps one stream busy at 40 Mbit/s over a 50 ms round trip (250 kB in flight), and is
# all that a stream which nobody reads can ever make us hold. yamux starts the same.
INITIAL_WINDOW_BYTES = 256 * 1024

# A full 1 Gbit/s path with 64 ms round trip. Only streams whose reader keeps up grow.
MAX_WINDOW_BYTES = 8 * 1024 * 1024

# On a short path the measured round trip says little: what a busy loop at either end adds
# is longer. Emptying half a window within this time counts as keeping up, too.
SHORT_PATH_SECONDS = 0.005

# Round trips count as at least this: uvloop's clock has no finer step, so on a fast network
# it measures 0.0, by which no reader would ever be fast enough.
MIN_ROUND_TRIP_SECONDS = 0.001


class ReceiveWindow:
    """What we have received of a stream, and how far the peer may send."""

    __slots__ = (
        "limit_offset",
        "received_offset",
        "size_bytes",
        "taken_offset",
        "updated_at",
    )

    def __init__(self, size_bytes: int, now: float) -> None:
        self.size_bytes = size_bytes
        # Offset after the last byte that arrived, in order. Never moves back.
        self.received_offset = 0
        # Offset after the last byte that the handler took. <= received_offset.
        self.taken_offset = 0
        # The peer may send bytes below this offset. Never moves back.
        self.limit_offset = size_bytes
        # When the limit last moved, to see whether the reader keeps up.
        self.updated_at = now

    def received(self, offset: int, count: int) -> None:
        """Account for `count` bytes that arrived at `offset`.

        Raises:
            PeerProtocolError: If they do not follow what came before (SPEC 6).
            FlowControlError: If the peer sent beyond its limit.
        """
        if offset != self.received_offset:
            raise PeerProtocolError(
                f"data at offset {offset}, expected {self.received_offset}"
            )
        offset += count
        if offset > self.limit_offset:
            raise FlowControlError(
                f"received up to {offset}, limit {self.limit_offset}"
            )
        self.received_offset = offset

    def taken(self, count: int) -> bool:
        """Account for bytes the handler took; True when a WINDOW is worth sending.

        That is when half the window has become free: a WINDOW for each small read
        would cost more than the read. This cannot stall the stream: when the limit is
        reached and all is taken, all of the window is free.

        Raises:
            InvalidState: If more is taken than ever arrived.
        """
        self.taken_offset += count
        if self.taken_offset > self.received_offset:
            raise InvalidState(f"taken {self.taken_offset} of {self.received_offset}")
        free = self.taken_offset + self.size_bytes - self.limit_offset
        return free >= self.size_bytes // 2

    def advance(self, now: float, round_trip_seconds: float) -> int:
        """Move the limit by what was taken and return it.

        A reader that empties half a window in less than two round trips is held back by
        the window, not by itself: the window doubles, up to its maximum.
        """
        if self.size_bytes < MAX_WINDOW_BYTES and now - self.updated_at < max(
            2 * round_trip_seconds, SHORT_PATH_SECONDS
        ):
            self.size_bytes *= 2
        self.updated_at = now
        self.limit_offset = max(self.limit_offset, self.taken_offset + self.size_bytes)
        return self.limit_offset


class SendWindow:
    """What we have sent of a stream, and how far we may."""

    __slots__ = ("limit_offset", "received_offset", "sent_offset")

    def __init__(self, limit_offset: int) -> None:
        # Offset after the last byte that we handed to a connection.
        self.sent_offset = 0
        # We may send bytes below this offset. Never moves back.
        self.limit_offset = limit_offset
        # The peer has everything below this offset. <= sent_offset.
        self.received_offset = 0

    @property
    def credit_bytes(self) -> int:
        return self.limit_offset - self.sent_offset

    def update(self, received_offset: int, limit_offset: int) -> bool:
        """Take in a WINDOW; True when there was no credit before and is now.

        An older WINDOW than what we know changes nothing (SPEC 6).

        Raises:
            PeerProtocolError: If the peer claims bytes that were never sent.
        """
        if received_offset > self.sent_offset:
            raise PeerProtocolError(
                f"peer claims {received_offset} bytes, we sent {self.sent_offset}"
            )
        blocked = self.limit_offset <= self.sent_offset
        if received_offset > self.received_offset:
            self.received_offset = received_offset
        if limit_offset > self.limit_offset:
            self.limit_offset = limit_offset
        return blocked and self.limit_offset > self.sent_offset
