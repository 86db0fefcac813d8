"""Whose turn it is: names to look at, each at most once at a time and not too often.

A name that is added many times waits once. One that is worked on and added meanwhile comes again
afterwards. Between two turns of a name lies SPACING_SECONDS, so that a storm of changes is one write; one
that failed waits longer each time, so that an apiserver that is away is not asked all the time.
"""

import asyncio
import heapq
import random
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["WorkQueue"]

_Name = TypeVar("_Name", bound=str)

# Well within the 5 s that status promises.
SPACING_SECONDS = 0.5
FIRST_RETRY_SECONDS = 0.5
# After an outage all are right again within this.
LAST_RETRY_SECONDS = 5.0


class WorkQueue(Generic[_Name]):
    """For several workers of one event loop."""

    def __init__(
        self, clock: Callable[[], float], randomness: random.Random | None = None
    ) -> None:
        self._clock = clock
        self._random = randomness or random.Random()
        # When each waiting name is due; the heap has every time that a name ever had.
        self._due: dict[_Name, float] = {}
        self._heap: list[tuple[float, _Name]] = []
        # Names that a worker has, and before when they do not come again.
        self._busy: set[_Name] = set()
        self._not_before: dict[_Name, float] = {}
        # How often in a row each failed.
        self._failures: dict[_Name, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, name: _Name, after_seconds: float = 0.0) -> None:
        """Look at this name when so much time has passed, or earlier if it waits already."""
        due = max(
            self._clock() + after_seconds, self._not_before.get(name, float("-inf"))
        )
        if due < self._due.get(name, float("inf")):
            self._due[name] = due
            if name not in self._busy:
                heapq.heappush(self._heap, (due, name))
                self._changed.set()

    async def take(self) -> _Name:
        """Wait for a name that is due; say `done` or `failed` afterwards."""
        while True:
            name, wait_seconds = self._next()
            if name is not None:
                return name
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def done(self, name: _Name) -> None:
        """The name was looked at, and all is well."""
        self._failures.pop(name, None)
        self._release(name, SPACING_SECONDS)

    def failures(self, name: _Name) -> int:
        """How often in a row it failed."""
        return self._failures.get(name, 0)

    def failed(self, name: _Name) -> None:
        """It could not be done: try again later."""
        count = self._failures.get(name, 0)
        self._failures[name] = count + 1
        pause = min(FIRST_RETRY_SECONDS * 2.0 ** min(count, 10), LAST_RETRY_SECONDS)
        pause *= self._random.uniform(0.8, 1.2)
        # Whatever has happened meanwhile, not before that.
        self._due.pop(name, None)
        self._release(name, pause)
        self.add(name)

    def forget(self, name: _Name) -> None:
        """There is nothing left of this name; it keeps no memory here."""
        self._failures.pop(name, None)
        self._not_before.pop(name, None)

    def _next(self) -> tuple[_Name | None, float | None]:
        """A name that is due, taken out; or how long until the next is (None: nobody waits)."""
        now = self._clock()
        while self._heap:
            due, name = self._heap[0]
            if self._due.get(name) != due or name in self._busy:
                heapq.heappop(self._heap)  # it has another time by now
            elif due > now:
                return None, due - now
            else:
                heapq.heappop(self._heap)
                del self._due[name]
                self._busy.add(name)
                return name, None
        return None, None

    def _release(self, name: _Name, spacing_seconds: float) -> None:
        self._busy.discard(name)
        not_before = self._clock() + spacing_seconds
        self._not_before[name] = not_before
        due = self._due.get(name)
        if due is not None:
            self._due[name] = due = max(due, not_before)
            heapq.heappush(self._heap, (due, name))
            self._changed.set()
