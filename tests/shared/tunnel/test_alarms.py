"""One timer for many alarms.

The aspects: alarms ring once, not before their time and soon after it, with that time; set
again, stopped, stopped by another one; a bug behind one leaves the others be; no timer while
none is set, and no loop is kept alive.
"""

import asyncio
import gc
import time
import weakref

import pytest

from shared.tunnel.alarms import LOOK_EVERY_SECONDS, Alarm, Alarms, alarms_of
from tests.fakes.host_side import until
from tests.fakes.tunnel_pair import both_loops


class Ringing:
    """Alarms, and when each has rung."""

    def __init__(self) -> None:
        self.alarms = alarms_of(asyncio.get_running_loop())
        self.rung: list[tuple[str, float, float]] = []

    def alarm(self, name: str = "a") -> Alarm:
        return Alarm(
            self.alarms, lambda due: self.rung.append((name, due, time.monotonic()))
        )

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.rung]


@both_loops
async def test_an_alarm_rings_once_after_its_time() -> None:
    ringing = Ringing()
    alarm = ringing.alarm()
    due = time.monotonic() + 0.1
    alarm.set(due)
    await until(lambda: ringing.rung)
    ((_, told, at),) = ringing.rung
    assert told == due <= at
    assert not alarm.is_set and not len(ringing.alarms)
    await asyncio.sleep(3 * LOOK_EVERY_SECONDS)
    assert len(ringing.rung) == 1


@both_loops
async def test_a_nearer_time_is_not_held_up_by_a_farther_one() -> None:
    ringing = Ringing()
    far, near = ringing.alarm("far"), ringing.alarm("near")
    far.set(time.monotonic() + 60)
    near.set(time.monotonic() + 0.1)
    await until(lambda: ringing.rung)
    assert ringing.names == ["near"] and far.is_set
    far.set(time.monotonic())
    await until(lambda: len(ringing.rung) == 2)
    assert ringing.names == ["near", "far"]


@both_loops
async def test_only_the_last_time_counts() -> None:
    ringing = Ringing()
    alarm = ringing.alarm()
    alarm.set(time.monotonic())
    alarm.set(due := time.monotonic() + 3 * LOOK_EVERY_SECONDS)
    await until(lambda: ringing.rung)
    ((_, told, _),) = ringing.rung
    assert told == due


@both_loops
async def test_stopped_alarms_do_not_ring_and_leave_no_timer() -> None:
    ringing = Ringing()
    alarm, other = ringing.alarm(), ringing.alarm("other")
    other.set(time.monotonic() + 0.02)
    alarm.set(time.monotonic())
    alarm.stop()
    await until(lambda: ringing.rung)
    assert ringing.names == ["other"]
    other.set(time.monotonic() + 60)
    other.stop()
    assert ringing.alarms._timer is None


@both_loops
async def test_one_alarm_may_stop_another_that_is_due_and_set_itself_again() -> None:
    alarms = alarms_of(asyncio.get_running_loop())
    rung: list[str] = []

    def ring(name: str) -> None:
        rung.append(name)
        both["b" if name == "a" else "a"].stop()
        both[name].set(time.monotonic())

    both = {
        "a": Alarm(alarms, lambda _: ring("a")),
        "b": Alarm(alarms, lambda _: ring("b")),
    }
    for alarm in both.values():
        alarm.set(time.monotonic())
    await until(lambda: len(rung) == 3)
    assert len(set(rung)) == 1, "the other one was stopped"
    both[rung[0]].stop()


def test_a_bug_behind_one_alarm_leaves_the_others_be(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        ringing = Ringing()
        broken = Alarm(ringing.alarms, lambda due: [][0])
        broken.set(time.monotonic())
        for name in ("a", "b"):
            ringing.alarm(name).set(time.monotonic())
        await until(lambda: len(ringing.rung) == 2)

    asyncio.run(scenario())
    assert caplog.messages == ["bug behind an alarm"]


def test_each_loop_has_its_own_and_none_is_kept_alive() -> None:
    async def scenario() -> tuple[Alarms, "weakref.ref[asyncio.AbstractEventLoop]"]:
        loop = asyncio.get_running_loop()
        ringing = Ringing()
        assert alarms_of(loop) is ringing.alarms
        ringing.alarm().set(time.monotonic())
        await until(lambda: ringing.rung)
        return ringing.alarms, weakref.ref(loop)

    first, loop = asyncio.run(scenario())
    second, _ = asyncio.run(scenario())
    assert first is not second
    gc.collect()
    assert loop() is None
