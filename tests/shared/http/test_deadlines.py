"""The deadline that moves: by a loop whose time the test sets."""

import asyncio
import gc
import weakref
from collections.abc import Callable

from shared.http.deadlines import Deadline


class Handle:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self._when, self.callback = when, callback
        self.is_cancelled = False

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop(asyncio.AbstractEventLoop):
    """Time and timers only."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Handle] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when, callback, *args, context=None):  # type: ignore[no-untyped-def]
        self.timers.append(Handle(when, callback))
        return self.timers[-1]

    def advance(self, now: float) -> None:
        self.now = now
        for timer in list(self.timers):
            if timer.is_cancelled or timer.when() <= now:
                self.timers.remove(timer)
                if not timer.is_cancelled:
                    timer.callback()


def make() -> tuple[Loop, list[float], Deadline]:
    loop, passed = Loop(), []
    return loop, passed, Deadline(loop, lambda: passed.append(loop.now))


def test_it_passes_once_at_its_time() -> None:
    loop, passed, deadline = make()
    deadline.set(10)
    loop.advance(9)
    assert not passed and deadline.is_set
    loop.advance(10)
    loop.advance(99)
    assert passed == [10] and not deadline.is_set


def test_moving_it_later_costs_no_timer() -> None:
    loop, passed, deadline = make()
    deadline.set(10)
    for now in range(1, 9):
        loop.now = now
        deadline.clear()
        deadline.set(10)
    assert len(loop.timers) == 1
    loop.advance(10)
    assert not passed
    loop.advance(18)
    assert passed == [18]


def test_moving_it_earlier_is_kept() -> None:
    loop, passed, deadline = make()
    deadline.set(100)
    deadline.set(5)
    loop.advance(5)
    assert passed == [5]
    loop.advance(200)
    assert passed == [5]


def test_a_cleared_one_does_not_pass_and_a_closed_one_leaves_no_timer() -> None:
    loop, passed, deadline = make()
    deadline.set(5)
    deadline.clear()
    loop.advance(6)
    assert not passed and not loop.timers
    deadline.set(5)
    deadline.close()
    loop.advance(99)
    assert not passed and not loop.timers


def test_a_closed_one_is_no_cycle_with_its_owner() -> None:
    class Owner:
        def __init__(self) -> None:
            self.deadline = Deadline(Loop(), self.is_late)
            self.deadline.set(10)

        def is_late(self) -> None:
            raise AssertionError("it is closed")

    owner = Owner()
    owner.deadline.close()
    gone = weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert gone() is None
    finally:
        gc.enable()
