"""One deadline that moves often and passes rarely, for the price of an assignment.

asyncio timers cost an allocation and a heap entry each; a request moves its connection's
deadline twice. So the timer stays where it is, looks at the deadline when it fires, and
goes to sleep again if that has moved.
"""

import asyncio
import math
from collections.abc import Callable

__all__ = ["Deadline"]


class Deadline:
    """Calls `on_passed` once the time set has passed, unless it was moved or cleared."""

    __slots__ = ("_fires_at", "_loop", "_on_passed", "_timer", "_when")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_passed: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._on_passed = on_passed
        # None: there is no deadline now.
        self._when: float | None = None
        # Fires at the deadline or before it; None when not needed yet.
        self._timer: asyncio.TimerHandle | None = None
        # When that is.
        self._fires_at = math.inf

    @property
    def is_set(self) -> bool:
        return self._when is not None

    @property
    def left_seconds(self) -> float:
        """How long until it passes; without bound when there is none."""
        return float("inf") if self._when is None else self._when - self._loop.time()

    def set(self, seconds: float) -> None:
        """Move it to so many seconds from now."""
        self._when = when = self._loop.time() + seconds
        if when < self._fires_at:
            if self._timer is not None:
                self._timer.cancel()
            self._sleep_until(when)

    def clear(self) -> None:
        """There is none until it is set again."""
        self._when = None

    def close(self) -> None:
        """It is never needed any more: it lets go of its timer and of whom it would call.

        That is mostly its owner, and both would wait for the cycle collector, with the 40 KB
        that OpenSSL holds for a connection.
        """
        self._when = None
        self._on_passed = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._fires_at = math.inf

    def _sleep_until(self, when: float) -> None:
        self._fires_at = when
        self._timer = self._loop.call_at(when, self._fired)

    def _fired(self) -> None:
        self._timer = None
        self._fires_at = math.inf
        if self._when is None:
            return
        # uvloop's clock has milliseconds: a timer may fire a little early.
        if self._when > self._loop.time() + 0.001:
            self._sleep_until(self._when)
            return
        self._when = None
        self._on_passed()


def _nothing() -> None:
    """What a closed deadline does."""
