"""One timer for all connections of an event loop: to set an alarm is to write down a time.

A server of thousands of agents has a timer for each, which is set again with every sign of
life and hardly ever comes to anything. Timers of the loop cost an allocation, a heap's
reordering and 600 bytes each; a look at all times that are written down costs 30 ns each,
twenty times a second (measured: 0.3 % of a core for 5,000). Coarse on purpose: alarms may
come late by the time between two looks.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

__all__ = ["LOOK_EVERY_SECONDS", "Alarm", "Alarms", "alarms_of"]

_log = logging.getLogger(__name__)

# The shortest of the times that are waited for is the 0.5 s of a write's progress.
LOOK_EVERY_SECONDS = 0.05

_NEVER = float("inf")

# Not the loop's clock: uvloop's has steps of 1 ms. See shared.tunnel.connection.
_clock = time.monotonic


class Alarm:
    """Calls back, once for each `set`, when its time has come; the call gets that time."""

    __slots__ = ("_alarms", "_call", "due")

    def __init__(self, alarms: "Alarms", call: Callable[[float], None]) -> None:
        self._alarms = alarms
        self._call = call
        # By time.monotonic; infinite while it is not set.
        self.due = _NEVER

    @property
    def is_set(self) -> bool:
        return self.due < _NEVER

    def set(self, due: float) -> None:
        """Call back then, instead of when it was set for before."""
        if self.due == _NEVER:
            self._alarms.add(self)
        self.due = due
        self._alarms.wake_at(due)

    def stop(self) -> None:
        """Do not call back."""
        self.due = _NEVER
        self._alarms.remove(self)

    def ring(self) -> None:
        """Its time has come."""
        due = self.due
        self.stop()
        self._call(due)


class Alarms:
    """The alarms of one event loop. It has a timer while any is set."""

    def __init__(self) -> None:
        self._set: set[Alarm] = set()
        # The next look, and when it is.
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = _NEVER

    def __len__(self) -> int:
        return len(self._set)

    def add(self, alarm: Alarm) -> None:
        self._set.add(alarm)

    def remove(self, alarm: Alarm) -> None:
        self._set.discard(alarm)
        if not self._set and self._timer is not None:
            self._timer.cancel()
            self._timer, self._look_at = None, _NEVER

    def wake_at(self, due: float) -> None:
        """See to it that there is a look at this time, or a little later."""
        if due < self._look_at - LOOK_EVERY_SECONDS:
            self._look_next(due)

    def _look_next(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = _clock()
        self._look_at = max(due, now)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._look_at - now, self._look)

    def _look(self) -> None:
        self._timer, self._look_at = None, _NEVER
        now = _clock()
        for alarm in [alarm for alarm in self._set if alarm.due <= now]:
            if alarm.due <= now:  # an earlier one may have stopped it
                try:
                    alarm.ring()
                except Exception:
                    _log.exception("bug behind an alarm")
        if self._set:
            first = min(alarm.due for alarm in self._set)
            self._look_next(max(first, now + LOOK_EVERY_SECONDS))


# One for each loop: tests have several, one after the other. Alarms must not refer to theirs.
_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Alarms] = WeakKeyDictionary()


def alarms_of(loop: asyncio.AbstractEventLoop) -> Alarms:
    """Those of this loop, the same at every call."""
    found = _of_loops.get(loop)
    if found is None:
        found = _of_loops[loop] = Alarms()
    return found
