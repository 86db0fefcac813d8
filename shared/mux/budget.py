"""How much memory windows and kept messages may take: one ceiling inside another. SPEC 6.

Every stream may always fill its first window, and every session may keep a little of what
it sent: that alone lets everybody go on, so nobody ever waits for anybody else's memory.
What goes beyond is taken from a budget: the session's, which is part of the process's.

Near a ceiling nobody is refused and nobody is searched for. Whoever asks may have two
thirds of what the others have left; one that has more than that takes no more until its
reader has emptied it below. So the budget is never overdrawn, a single stream gets most of
it, n of them settle at the same share each, and there is always something left for one that
comes anew. (Switches share the memory of their ports so: "dynamic queue thresholds",
Choudhury and Hahne 1998, with alpha = 2.)
"""

__all__ = [
    "DEFAULT_WINDOW_MEMORY_BYTES",
    "MIN_WINDOW_MEMORY_BYTES",
    "WindowBudget",
]

# For one process. A session may have half of it, and a stream two thirds of that: 85 MB,
# three times the 25 MB that are under way at 1 Gbit/s and 200 ms. It fits beside the rest
# into the 512 MiB that our manifest gives an agent, and is used only by who needs it.
DEFAULT_WINDOW_MEMORY_BYTES = 256 * 1024 * 1024

# Below this one stream would not fill 1 Gbit/s over 20 ms.
MIN_WINDOW_MEMORY_BYTES = 16 * 1024 * 1024


class WindowBudget:
    """Memory that is shared by those who ask for `share` and book by `change`."""

    __slots__ = ("_parent", "ceiling_bytes", "held_back", "used_bytes")

    def __init__(
        self,
        ceiling_bytes: int = DEFAULT_WINDOW_MEMORY_BYTES,
        parent: "WindowBudget | None" = None,
    ) -> None:
        self.ceiling_bytes = ceiling_bytes
        # What is booked now, in windows and in kept messages.
        self.used_bytes = 0
        # How often a window wanted more than its share; for people.
        self.held_back = 0
        # Of the process, for a session's. What is booked here is booked there, too.
        self._parent = parent

    def for_session(self) -> "WindowBudget":
        """A part for one session: at most half, so that no peer keeps the others small."""
        return WindowBudget(self.ceiling_bytes // 2, self)

    def share(self, own_bytes: int) -> int:
        """How much one that has booked `own_bytes` may have in all; perhaps less than that."""
        share = (self.ceiling_bytes - self.used_bytes + own_bytes) * 2 // 3
        if self._parent is not None:
            share = min(share, self._parent.share(own_bytes))
        return share

    def note_held_back(self) -> None:
        """Count that somebody wanted more than its share."""
        self.held_back += 1
        if self._parent is not None:
            self._parent.note_held_back()

    def change(self, more_bytes: int) -> None:
        """Book more, up to `share`; or give back, by a negative number."""
        self.used_bytes += more_bytes
        if self._parent is not None:
            self._parent.change(more_bytes)
