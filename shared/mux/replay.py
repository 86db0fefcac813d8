"""What makes a session survive its connection: messages are counted, kept, and sent again.

Each side counts the messages that it has sent in the session and keeps a message until the
peer's ACK says that it arrived. After a lost connection each side tells how many it has
received, and the other goes on behind that one, from the kept messages. A message is the
unit because a connection delivers it whole or not at all; what a stream's frames mean is
never looked at, so nothing can be lost, doubled or reordered by resuming. SPEC 10.

Kept messages are the very bytes that were sent: keeping costs memory and no copy. What is
kept beyond a small part is booked in the session's budget, together with its windows.
"""

from shared.errors import PeerProtocolError
from shared.mux.budget import WindowBudget

__all__ = [
    "ACK_AFTER_BYTES",
    "FREE_KEPT_BYTES",
    "MAX_KEPT_BYTES",
    "MAX_KEPT_MESSAGES",
    "Replay",
]

# An ACK of its own goes out after so many bytes: a sender's memory is then little more than
# what is under way. Otherwise ACKs ride in messages that go out anyway.
ACK_AFTER_BYTES = 64 * 1024

# So much every session may keep, however little the others leave it: 160 Mbit/s over 50 ms.
# More than ACK_AFTER_BYTES, so that the ACK which frees it is always on its way.
FREE_KEPT_BYTES = 1024 * 1024

# Beyond this, or beyond its share of the budget, a session sends no more data until an ACK
# comes. 1 Gbit/s over 500 ms; windows hold single streams back earlier, this the sum of them.
MAX_KEPT_BYTES = 64 * 1024 * 1024

# ... nor beyond so many: a message of ten bytes costs fifty more in memory. As few bytes
# as these hold make an ACK due, so this cannot stall.
MAX_KEPT_MESSAGES = 64 * 1024

# What goes out even so (WINDOW, PONG, RESET) answers what the peer sends. One that goes on
# and on without ever an ACK would make us keep the answers without bound.
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_ANSWER_MESSAGES = 64 * 1024


class Replay:
    """The messages of one session, in both directions."""

    def __init__(
        self,
        budget: WindowBudget | None = None,
        *,
        free_kept_bytes: int = FREE_KEPT_BYTES,
        max_kept_bytes: int = MAX_KEPT_BYTES,
    ) -> None:
        self._budget = budget or WindowBudget()
        # Kept without asking; at least ACK_AFTER_BYTES, or data would wait for ever.
        self.free_kept_bytes = free_kept_bytes
        # Beyond this data waits.
        self.max_kept_bytes = max_kept_bytes
        # Of the budget: what is kept beyond `free_kept_bytes`.
        self.booked_bytes = 0
        # Messages that were sent, and those that the peer says it has.
        self.sent_count = 0
        self.acked_count = 0
        # The messages between the two, oldest first. A list, as the other queues of a
        # session are: they are empty nearly always, and an empty deque has 760 bytes.
        self._kept: list[bytes] = []
        self.kept_bytes = 0
        # Those of the kept ones that still have to go out again, the next one last.
        self._resend: list[bytes] = []
        # Messages that have been received and dealt with.
        self.received_count = 0
        # ... and how many of them the peer knows of, by our last ACK.
        self._reported_count = 0
        self._unreported_bytes = 0
        # Sent again after a resume, in all; for people.
        self.resent_bytes = 0

    # Sending

    @property
    def is_full(self) -> bool:
        """Whether data must wait for an ACK."""
        kept_bytes = self.kept_bytes
        if kept_bytes >= self.max_kept_bytes or len(self._kept) >= MAX_KEPT_MESSAGES:
            return True
        booked_bytes = self.booked_bytes
        return (
            kept_bytes >= self.free_kept_bytes
            and booked_bytes >= self._budget.share(booked_bytes)
        )

    @property
    def is_overfull(self) -> bool:
        """Whether the peer has had so many answers without an ACK that it is at fault."""
        return (
            self.kept_bytes >= self.max_kept_bytes + MAX_ANSWER_BYTES
            or len(self._kept) >= MAX_KEPT_MESSAGES + MAX_ANSWER_MESSAGES
        )

    def sent(self, message: bytes) -> None:
        """Keep a new message that goes out now."""
        self.sent_count += 1
        self._kept.append(message)
        self.kept_bytes += len(message)
        if self.kept_bytes > self.free_kept_bytes:
            self._book()

    def acknowledged(self, count: int) -> None:
        """The peer has `count` messages; an older number than we know changes nothing.

        Raises:
            PeerProtocolError: If that is more than were sent (or sent again).
        """
        if count > self.sent_count - len(self._resend):
            raise PeerProtocolError(
                f"peer acknowledges {count} messages, we sent {self.sent_count}"
            )
        fresh = count - self.acked_count
        if fresh > 0:
            self.kept_bytes -= sum(map(len, self._kept[:fresh]))
            del self._kept[:fresh]
            self.acked_count = count
        if self.booked_bytes:
            self._book()

    def _book(self) -> None:
        booked_bytes = max(0, self.kept_bytes - self.free_kept_bytes)
        self._budget.change(booked_bytes - self.booked_bytes)
        self.booked_bytes = booked_bytes

    def close(self) -> None:
        """The session is over: keep nothing any more."""
        self._kept.clear()
        self._resend.clear()
        self.kept_bytes = 0
        self._book()

    def check_resume(self, count: int) -> None:
        """Look whether `resume` would do; changes nothing.

        Raises:
            PeerProtocolError: If it would not.
        """
        if not self.acked_count <= count <= self.sent_count:
            raise PeerProtocolError(
                f"peer resumes behind message {count}; it had {self.acked_count} "
                f"of {self.sent_count}"
            )

    def resume(self, count: int) -> None:
        """On a new connection: the peer has `count` messages, the others go out again.

        Raises:
            PeerProtocolError: If that is not between what it acknowledged and what was sent.
        """
        self.check_resume(count)
        self._resend.clear()
        self.acknowledged(count)
        self._resend.extend(reversed(self._kept))
        # HELLO has just said how many we have.
        self._reported_count = self.received_count
        self._unreported_bytes = 0

    def next_to_resend(self) -> bytes | None:
        """The next kept message that goes out again; None when all have."""
        if not self._resend:
            return None
        message = self._resend.pop()
        self.resent_bytes += len(message)
        return message

    @property
    def has_more_to_resend(self) -> bool:
        return bool(self._resend)

    @property
    def kept_count(self) -> int:
        return len(self._kept)

    @property
    def resend_count(self) -> int:
        return len(self._resend)

    # Receiving

    def received(self, size_bytes: int) -> None:
        """Count a message that has been dealt with.

        Raises:
            PeerProtocolError: If the peer has had more answers without an ACK than we keep.
        """
        if self.is_overfull:
            raise PeerProtocolError(f"{len(self._kept)} messages and no ACK")
        self.received_count += 1
        self._unreported_bytes += size_bytes

    @property
    def ack_is_due(self) -> bool:
        """Whether an ACK should go out by itself."""
        return self._unreported_bytes >= ACK_AFTER_BYTES

    def report(self) -> int | None:
        """The number for an ACK in the message that goes out now; None if it is known."""
        if self._reported_count == self.received_count:
            return None
        self._reported_count = self.received_count
        self._unreported_bytes = 0
        return self.received_count
