"""Flow control of one stream: how far each side may send, and how far it has arrived.

Everything is an absolute offset from the stream's first byte, so that repeating a
message changes nothing and a resumed session needs no second arithmetic. Nothing here
knows frames or sockets: callers pass offsets and act on what comes back. SPEC 6.
"""

from shared.errors import FlowControlError, InvalidState, PeerProtocolError
from shared.mux.budget import WindowBudget

__all__ = [
    "INITIAL_WINDOW_BYTES",
    "MAX_WINDOW_BYTES",
    "SHORT_PATH_SECONDS",
    "ReceiveWindow",
    "SendWindow",
]

# All that a stream can make us hold of which nobody ever reads, so that a thousand of those
# cost 32 MiB; and twice the first flight of a TCP connection (RFC 6928: 14 KiB).
INITIAL_WINDOW_BYTES = 32 * 1024

# 25 MB are under way at 1 Gbit/s and 200 ms; a window wants to be twice to four times that,
# because what is measured comes late.
MAX_WINDOW_BYTES = 64 * 1024 * 1024

# A WINDOW goes out for so much at the latest: half of a large window would leave the sender
# with too little, and more often than this nobody notices.
MAX_STEP_BYTES = 1024 * 1024

# On a short path the measured round trip says little: what a busy loop at either end adds
# is longer. Bytes are counted over at least this time.
SHORT_PATH_SECONDS = 0.005

# A window is at most so large, by all that its reader has taken. What it takes first proves
# little: the kernel's buffers swallow some hundred KiB for a reader that is stuck. Where
# round trips cost nothing we wait for better proof; else a window grows threefold in each.
PROOF_SHORT_PATH = 1 / 4
PROOF_LONG_PATH = 4

# How much larger than the measured bandwidth-delay product a window should be: at twice that
# a sender is not held back yet (half of it waits for the next WINDOW), beyond four times it
# is memory that somebody else could use.
GROW_BELOW, AIM_AT, SHRINK_ABOVE = 2, 3, 4

_NOTHING_SHARED = WindowBudget(2**62)


class ReceiveWindow:
    """What we have received of a stream, and how far the peer may send.

    The size follows the bandwidth-delay product: the bytes that the reader takes in one round
    trip. A limit that was given cannot be taken back; a window that shall be smaller stays
    where it is until the reader has caught up. What is larger than the first window is
    booked in a budget, which bounds it; the first window every stream has for itself.
    """

    __slots__ = (
        "_budget",
        "_due_offset",
        "_is_finished",
        "_marked_at",
        "_marked_offset",
        "booked_bytes",
        "floor_bytes",
        "limit_offset",
        "received_offset",
        "size_bytes",
        "taken_offset",
    )

    def __init__(
        self, size_bytes: int, now: float, budget: WindowBudget = _NOTHING_SHARED
    ) -> None:
        self._budget = budget
        # What the window never falls below, and what it is now.
        self.floor_bytes = self.size_bytes = size_bytes
        # Offset after the last byte that arrived, in order. Never moves back.
        self.received_offset = 0
        # Offset after the last byte that the handler took. <= received_offset.
        self.taken_offset = 0
        # The peer may send bytes below this offset. Never moves back.
        self.limit_offset = size_bytes
        # When this much is taken a WINDOW is due. <= limit_offset, else we could stall.
        self._due_offset = max(1, size_bytes // 2)
        # The last byte has arrived.
        self._is_finished = False
        # Where the reader was when we last measured, and when.
        self._marked_offset = 0
        self._marked_at = now
        # Of the budget. At least what is promised beyond the floor.
        self.booked_bytes = 0

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
        return self.taken_offset >= self._due_offset

    def advance(
        self, now: float, round_trip_seconds: float, *, is_short_path: bool = False
    ) -> int:
        """Fit the size to what was measured, move the limit by what was taken, return it.

        Args:
            round_trip_seconds: The last one, with what busy ends and queues add to it.
            is_short_path: Whether the shortest one is below `SHORT_PATH_SECONDS`.
        """
        if self._is_finished:  # since the WINDOW became due
            return self.limit_offset
        size, floor = (
            self._fitting_size(now, round_trip_seconds, is_short_path),
            self.floor_bytes,
        )
        if size > floor:
            share = self._budget.share(self.booked_bytes)
            if size - floor > share:
                self._budget.note_held_back()
                size = floor + max(0, share)
        self.size_bytes = size = max(size, floor)
        self.limit_offset = max(self.limit_offset, self.taken_offset + size)
        self._plan()
        return self.limit_offset

    def _fitting_size(
        self, now: float, round_trip_seconds: float, is_short_path: bool
    ) -> int:
        """How large the window should be by what the reader has taken lately."""
        size, elapsed = self.size_bytes, now - self._marked_at
        interval = max(round_trip_seconds, SHORT_PATH_SECONDS)
        product = self.taken_offset - self._marked_offset
        is_whole = elapsed >= interval
        if is_whole:
            product = int(product * interval / elapsed)
        if GROW_BELOW * product >= size:
            # Held back by the window: how large it should be cannot be measured yet.
            proof = PROOF_SHORT_PATH if is_short_path else PROOF_LONG_PATH
            most = min(4 * size, MAX_WINDOW_BYTES, int(proof * self.taken_offset))
            size = max(size, min(most, AIM_AT * product) if is_whole else most)
        elif not is_whole:
            return size  # too early to tell; the mark stays
        elif SHRINK_ABOVE * product < size:
            # By halves: after a pause, too, the first measurement is of a slow reader.
            size = max(size // 2, AIM_AT * product)
        self._marked_offset, self._marked_at = self.taken_offset, now
        return size

    def _book(self, booked_bytes: int) -> None:
        if booked_bytes != self.booked_bytes:
            self._budget.change(booked_bytes - self.booked_bytes)
            self.booked_bytes = booked_bytes

    def returned(self, known_offset: int, limit_offset: int, now: float) -> None:
        """The sender gives back credit: begin with the first window again.

        It may not know our latest limit yet; then it will use that one, and returns nothing.

        Raises:
            PeerProtocolError: If it knows a limit that we never gave, or returns what it used.
        """
        if known_offset > self.limit_offset:
            raise PeerProtocolError(
                f"peer returns a limit of {known_offset}, it has {self.limit_offset}"
            )
        if not self.received_offset <= limit_offset <= known_offset:
            raise PeerProtocolError(
                f"peer returns credit down to {limit_offset}, it has sent "
                f"{self.received_offset} of {known_offset}"
            )
        if known_offset < self.limit_offset or self._is_finished:
            return
        self.size_bytes = self.floor_bytes
        self.limit_offset = limit_offset
        self._marked_offset, self._marked_at = self.taken_offset, now
        self._plan()

    def _plan(self) -> None:
        """After the limit has moved: when the next WINDOW is due, and what is booked."""
        taken = self.taken_offset
        step = max(1, min(self.size_bytes // 2, MAX_STEP_BYTES))
        # A sender that gave back all it had may have nothing left: then at once.
        self._due_offset = min(taken + step, self.limit_offset)
        self._book(max(0, self.limit_offset - taken - self.floor_bytes))

    def finish(self) -> None:
        """Nothing will arrive any more: only what is not taken yet is booked.

        Call it again when `taken` says so.
        """
        self._is_finished, self._due_offset = True, self.received_offset
        unread_bytes = self.received_offset - self.taken_offset
        self._book(max(0, unread_bytes - self.floor_bytes))

    def close(self) -> None:
        """The stream is over: book nothing any more."""
        self._book(0)


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

    def give_back(self, keep_bytes: int) -> tuple[int, int]:
        """Keep to so much credit from now on; returns the limit as it was, and as it is."""
        known_offset = self.limit_offset
        self.limit_offset = min(known_offset, self.sent_offset + keep_bytes)
        return known_offset, self.limit_offset

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
