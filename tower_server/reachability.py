"""Whether a member is reached: a state that does not flap, and when to look again. Pure.

One answer decides only the first time. Later a state changes when two looks in a row say so, and
the second follows soon after the first: a lost packet is no outage, and an outage is known within
the 5 s that status promises.
"""

__all__ = [
    "LOOK_AGAIN_SECONDS",
    "LOOK_EVERY_SECONDS",
    "LOOKS_TO_CHANGE",
    "Reachability",
]

# With LOOK_AGAIN_SECONDS, a tenth of jitter and a refused connection still below 5 s.
LOOK_EVERY_SECONDS = 3.0

# ... when the last look differs from the state.
LOOK_AGAIN_SECONDS = 0.5

LOOKS_TO_CHANGE = 2


class Reachability:
    """The state of one member, from what is seen of it."""

    def __init__(self) -> None:
        # None before the first look.
        self.is_reached: bool | None = None
        # Looks in a row that differ from it.
        self._differing = 0

    def saw(self, *, works: bool) -> bool:
        """Take in a look; True when the state changes by it."""
        if works == self.is_reached:
            self._differing = 0
            return False
        self._differing += 1
        if self.is_reached is not None and self._differing < LOOKS_TO_CHANGE:
            return False
        self.is_reached, self._differing = works, 0
        return True

    @property
    def pause_seconds(self) -> float:
        """How long until the next look, before jitter."""
        return LOOK_AGAIN_SECONDS if self._differing else LOOK_EVERY_SECONDS
