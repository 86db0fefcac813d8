"""When the link dials, what it does with several tunnels, and how it ends. Virtual time, no network.

Covered: the schedule as dials show it, overlapping dials (hanging, both through, late),
losses and GOAWAYs, what the server asks for, refusals that are final, the log, closing.
`test_link_loopback.py` has the same over real tunnels.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import Code
from shared.wire.frames import GoAway
from tests.fakes.virtual_time import in_virtual_time
from tower_agent.dialer import DialFailed
from tower_agent.link import (
    MAX_PARALLEL_DIALS,
    REPEAT_LOG_SECONDS,
    RETIRED_LOOK_SECONDS,
    FailureLog,
    Link,
    LinkEnded,
)

HELLO: Any = SimpleNamespace(software="tower-server/test")
ROUND_TRIP = 0.1


class FakeSession:
    """As much of a Session as the link looks at."""

    def __init__(self, tunnel: "FakeTunnel") -> None:
        self.tunnel = tunnel
        self.streams: dict[int, Any] = {}
        self.detached = False
        self.peer_draining = False
        self.notices: list[Code] = []
        self.wound_down = 0

    def go_away(self, code: Code, reason: str) -> None:
        if not self.notices:
            self.notices.append(code)

    def wind_down(self) -> None:
        self.wound_down += 1

    def reset_streams(self, code: Code, reason: str) -> int:
        count = sum(number % 2 == 0 for number in self.streams)
        self.streams.clear()
        return count

    @property
    def is_spent(self) -> bool:
        is_ending = bool(self.notices or self.peer_draining)
        return is_ending and all(number % 2 for number in self.streams)


class FakeTunnel:
    """As much of a TunnelConnection as the link looks at; told to the link by the test."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.ended_with: Code | str | None = None
        # Set to keep it alive when it is closed, as a peer that does not read does.
        self.stubborn = False
        # As much of its session: it is spent once it was told to end and has no streams.
        self.session = FakeSession(self)

    @property
    def notices(self) -> list[Code]:
        return self.session.notices

    @property
    def closed(self) -> bool:
        return self not in self.world.link._tunnels

    def add_stream(self, stream_id: int) -> None:
        self.session.streams[stream_id] = SimpleNamespace(id=stream_id)

    def ready(self) -> None:
        self.world.link.tunnel_ready(self, HELLO)  # type: ignore[arg-type]

    def lose(self, reason: str = "the peer closed it") -> None:
        self.session.streams.clear()
        self.world.link.tunnel_lost(self, reason)  # type: ignore[arg-type]

    def go_away(self, code: Code = Code.GOING_AWAY, retry_after: float = 0.0) -> None:
        notice = GoAway(code, retry_after, "restart")
        self.session.peer_draining = True
        self.world.link.going_away(self, notice)  # type: ignore[arg-type]

    def close(self, code: Code, reason: str) -> None:
        if self.ended_with is None:
            self.ended_with = code
            if not self.stubborn:
                asyncio.get_running_loop().call_later(ROUND_TRIP, self.lose, reason)

    def abort(self, reason: str) -> None:
        self.ended_with = "aborted"
        asyncio.get_running_loop().call_soon(self.lose, reason)


class World:
    """A link, and a network that does what the test says to the dials."""

    def __init__(self, answer: Callable[[], Awaitable[FakeTunnel]]) -> None:
        self.answer = answer
        # When each dial began, and how many were cancelled.
        self.dialled_at: list[float] = []
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        # Whether dials get a connection, before anything else.
        self.reaches = False
        self.connected_at: list[float] = []
        self.tunnels: list[FakeTunnel] = []
        self.link = Link(self._dial, self._connected, random.Random(4))  # type: ignore[arg-type]

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def _connected(self, connection: object, hello: object) -> None:
        self.connected_at.append(self.now)

    async def _dial(self, resume: object, reached: Callable[[], None]) -> FakeTunnel:
        self.dialled_at.append(self.now)
        if self.reaches:
            asyncio.get_running_loop().call_later(ROUND_TRIP, reached)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self.answer()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def tunnel(self, *, ready_after: float | None = ROUND_TRIP) -> FakeTunnel:
        """One that has said HELLO now, and hears the server's a round trip later."""
        tunnel = FakeTunnel(self)
        self.tunnels.append(tunnel)
        if ready_after is not None:
            asyncio.get_running_loop().call_later(ready_after, tunnel.ready)
        return tunnel

    @property
    def current(self) -> FakeTunnel:
        assert self.link.current is not None
        return self.link.current  # type: ignore[return-value]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10_000):
            while not condition():
                await asyncio.sleep(0.01)

    def gaps(self) -> list[float]:
        times = self.dialled_at
        return [after - before for before, after in zip(times, times[1:], strict=False)]


@asynccontextmanager
async def running(world: World):
    task = asyncio.create_task(world.link.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, LinkEnded):
            await task
        await world.link.close("the test is over", 1.0)
        assert world.running == 0, "a dial outlives its link"
        assert not world.link._tunnels and not world.link._arriving


def answers(*each: Any) -> World:
    """Dials answered one after the other; the last answer goes on for ever.

    An answer is an exception, `None` for a tunnel after a round trip, or a function.
    """
    left = list(each)

    async def answer() -> FakeTunnel:
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        if now is None:
            await asyncio.sleep(ROUND_TRIP)
            return world.tunnel()
        return await now()

    world = World(answer)
    return world


async def hang() -> FakeTunnel:
    await asyncio.sleep(10.0)
    raise DialFailed("no answer in time")


REFUSED = DialFailed("nothing listens there")


# The schedule


@in_virtual_time
async def test_the_first_dial_is_at_once_and_then_there_is_peace() -> None:
    world = answers(None)
    async with running(world):
        await asyncio.sleep(3600)
        assert world.dialled_at == [0.0]
        assert world.connected_at == [pytest.approx(2 * ROUND_TRIP)]


@in_virtual_time
async def test_a_server_that_is_down_is_dialled_quickly_for_a_minute_then_slowly() -> (
    None
):
    world = answers(REFUSED)
    async with running(world):
        await asyncio.sleep(3600)
    quick = [
        g for g, at in zip(world.gaps(), world.dialled_at, strict=False) if at < 60
    ]
    assert max(quick) <= 1.0  # the last one may be the first slow one
    assert 180 < len(quick) < 300
    slow = world.gaps()[len(quick) + 6 :]
    assert max(slow) <= 30.0 and 10.0 < sum(slow) / len(slow) < 20.0


@in_virtual_time
async def test_a_loss_is_followed_by_a_dial_within_half_a_second() -> None:
    world = answers(None)
    async with running(world):
        for _ in range(20):
            await world.until(lambda: world.link.current)
            await asyncio.sleep(10)
            world.current.lose()
            assert world.link.current is None
            lost_at, before = world.now, len(world.dialled_at)
            await world.until(lambda before=before: len(world.dialled_at) > before)
            assert world.dialled_at[-1] - lost_at <= 0.5


@in_virtual_time
async def test_after_a_goaway_the_next_tunnel_is_dialled_at_once() -> None:
    """The old tunnel is left alone: it finishes its streams."""
    world = answers(None)
    async with running(world):
        await asyncio.sleep(10)
        old = world.current
        old.add_stream(2)
        old.go_away()
        await asyncio.sleep(1)
        assert world.dialled_at == [0.0, 10.0]
        assert world.current is not old
        await asyncio.sleep(60)
        assert old.ended_with is None and old.notices == []
        assert old.session.wound_down > 50, "what can end there is asked to"
        old.session.streams.clear()
        await asyncio.sleep(RETIRED_LOOK_SECONDS + ROUND_TRIP)
        assert old.ended_with is Code.REPLACED
        await asyncio.sleep(60)
        assert len(world.dialled_at) == 2


@in_virtual_time
async def test_a_verdict_is_no_goaway_that_one_follows_at_once() -> None:
    world = answers(None)
    async with running(world):
        await asyncio.sleep(10)
        world.current.go_away(Code.REPLACED)
        await asyncio.sleep(1)
        assert 10.0 < world.dialled_at[1] <= 10.5


@in_virtual_time
async def test_sessions_that_replace_each_other_do_not_do_so_in_a_storm() -> None:
    """One agent too many: whoever is taken in puts another out."""
    world = answers(None)
    async with running(world):
        while world.now < 900:
            await world.until(lambda: world.link.current)
            world.current.go_away(Code.GOING_AWAY)
            world.tunnels[-1].lose()
    assert len(world.dialled_at) < 250


@in_virtual_time
async def test_a_goaway_that_asks_for_a_pause_gets_it() -> None:
    world = answers(None)
    async with running(world):
        await asyncio.sleep(10)
        world.current.go_away(retry_after=20.0)
        world.tunnels[-1].lose()
        await asyncio.sleep(60)
        assert 30.0 <= world.dialled_at[1] <= 35.0


@in_virtual_time
async def test_an_answer_that_asks_for_a_pause_gets_it() -> None:
    world = answers(DialFailed("busy", retry_after_seconds=20.0), None)
    async with running(world):
        await asyncio.sleep(60)
        assert len(world.dialled_at) == 2
        assert 20.0 <= world.dialled_at[1] <= 25.0
        assert world.link.current is not None


# Dials side by side


@in_virtual_time
async def test_a_dial_that_hangs_holds_up_the_next_for_a_second_only() -> None:
    world = answers(hang, None)
    async with running(world):
        await world.until(lambda: world.link.current)
        assert 1.0 <= world.dialled_at[1] <= 1.5
        await asyncio.sleep(60)
        assert len(world.dialled_at) == 2
        assert world.cancelled == 1, "the hanging one is given up"


@in_virtual_time
async def test_a_server_that_has_taken_the_call_and_is_busy_gets_more_time() -> None:
    world = answers(hang, None)
    world.reaches = True
    async with running(world):
        await world.until(lambda: world.link.current)
        assert 3.0 <= world.dialled_at[1] - ROUND_TRIP <= 3.5
        assert len(world.dialled_at) == 2


@in_virtual_time
async def test_a_dial_that_fails_after_it_was_connected_holds_up_nothing() -> None:
    async def fail_later() -> FakeTunnel:
        await asyncio.sleep(5 * ROUND_TRIP)
        raise REFUSED

    world = answers(fail_later, None)
    world.reaches = True
    async with running(world):
        await world.until(lambda: world.link.current)
        assert world.dialled_at[1] <= 5 * ROUND_TRIP + 0.5


@in_virtual_time
async def test_no_more_than_three_dials_hang_at_once() -> None:
    world = answers(hang)
    async with running(world):
        await asyncio.sleep(600)
        assert world.most_running == MAX_PARALLEL_DIALS == 3
        # Each place is taken again soon after it is free.
        assert len(world.dialled_at) > 20


@in_virtual_time
async def test_a_dial_that_hangs_for_ever_without_the_network_is_not_all_there_is() -> (
    None
):
    """What is not through when the network is back does not keep new dials from it."""
    world = answers(hang, hang, None)
    async with running(world):
        await asyncio.sleep(4)
        assert world.link.current is not None


@in_virtual_time
async def test_of_two_tunnels_the_newer_counts_and_the_older_ends_with_its_streams() -> (
    None
):
    world = World(lambda: slow_hello())

    async def slow_hello() -> FakeTunnel:
        # Both have said HELLO when the first is ready.
        return world.tunnel(ready_after=2.0 - 0.1 * len(world.tunnels))

    async with running(world):
        await world.until(lambda: world.link.current)
        older, newer = world.tunnels
        assert world.current is older
        older.add_stream(1)  # our own control stream
        older.add_stream(2)
        await world.until(lambda: world.link.current is newer)
        assert older.notices == [Code.REPLACED]
        await asyncio.sleep(3600)
        assert older.ended_with is None, "its stream runs"
        del older.session.streams[2]
        await asyncio.sleep(5)
        assert older.ended_with is Code.REPLACED
        assert world.current is newer and newer.ended_with is None
        assert len(world.dialled_at) == 2
        assert len(world.connected_at) == 2


@in_virtual_time
async def test_an_older_tunnel_that_breaks_changes_nothing() -> None:
    world = World(lambda: slow_hello())

    async def slow_hello() -> FakeTunnel:
        return world.tunnel(ready_after=2.0 - 0.1 * len(world.tunnels))

    async with running(world):
        await world.until(lambda: len(world.connected_at) == 2)
        older, newer = world.tunnels
        older.lose()
        older.go_away()
        await asyncio.sleep(60)
        assert world.current is newer and len(world.dialled_at) == 2


@in_virtual_time
async def test_a_tunnel_that_breaks_before_its_hello_is_a_dial_that_failed() -> None:
    async def breaks() -> FakeTunnel:
        tunnel = world.tunnel(ready_after=None)
        asyncio.get_running_loop().call_later(0.05, tunnel.lose)
        return tunnel

    world = answers(breaks, None)
    async with running(world):
        await world.until(lambda: world.link.current)
        assert 0.05 < world.dialled_at[1] <= 0.6
        assert len(world.connected_at) == 1


@in_virtual_time
async def test_tunnels_without_a_hello_count_as_dials_under_way() -> None:
    async def mute() -> FakeTunnel:
        tunnel = world.tunnel(ready_after=None)
        asyncio.get_running_loop().call_later(4.5, tunnel.lose)
        return tunnel

    world = World(mute)
    async with running(world):
        for _ in range(600):
            await asyncio.sleep(0.1)
            assert len(world.link._arriving) <= MAX_PARALLEL_DIALS


@in_virtual_time
async def test_a_bug_in_a_dial_is_one_failed_dial() -> None:
    world = answers(RuntimeError("a bug"), RuntimeError("a bug"), None)
    async with running(world):
        await world.until(lambda: world.link.current)
        assert len(world.dialled_at) == 3


# Ends


@in_virtual_time
async def test_a_final_refusal_ends_the_link_with_its_sentence() -> None:
    world = answers(hang, DialFailed("alpha is not known here", final=True))
    async with running(world) as task:
        with pytest.raises(LinkEnded, match="^alpha is not known here$"):
            await task
        assert world.cancelled == 1, "the hanging dial"
        assert len(world.dialled_at) == 2


@in_virtual_time
async def test_cancelling_gives_up_the_dials() -> None:
    world = answers(hang)
    async with running(world) as task:
        await asyncio.sleep(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert world.running == 0 and world.cancelled == 2
        await asyncio.sleep(60)
        assert len(world.dialled_at) == 2


async def stopped(world: World, task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@in_virtual_time
async def test_draining_gives_streams_their_time_and_no_more() -> None:
    world = answers(None)
    async with running(world) as task:
        await asyncio.sleep(10)
        tunnel = world.current
        tunnel.add_stream(2)
        tunnel.add_stream(4)
        await stopped(world, task)
        asyncio.get_running_loop().call_later(5.0, tunnel.session.streams.pop, 2)
        await world.link.drain("the agent stops", 20.0)
        assert world.now == pytest.approx(30.0)
        assert tunnel.notices == [Code.GOING_AWAY] and not tunnel.session.streams
        assert tunnel.ended_with is Code.GOING_AWAY
        assert world.dialled_at == [0.0], "nobody dials who stops"


@in_virtual_time
async def test_draining_is_over_when_the_last_stream_is() -> None:
    world = answers(None)
    async with running(world) as task:
        await asyncio.sleep(10)
        tunnel = world.current
        tunnel.add_stream(2)
        await stopped(world, task)
        asyncio.get_running_loop().call_later(5.0, tunnel.session.streams.pop, 2)
        await world.link.drain("the agent stops", 20.0)
        assert world.now == pytest.approx(15.0, abs=0.11)


@in_virtual_time
async def test_closing_tells_every_tunnel_and_drops_those_that_stay() -> None:
    world = World(lambda: late_hello())

    async def late_hello() -> FakeTunnel:
        return world.tunnel(ready_after=1.0 if not world.tunnels else None)

    async with running(world) as task:
        await world.until(lambda: world.link.current)
        await asyncio.sleep(10)
        friendly = world.current
        friendly.lose()
        await world.until(lambda: len(world.tunnels) == 2)
        arriving = world.tunnels[1]
        arriving.stubborn = True
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        before = world.now
        await world.link.close("the agent stops", 2.0)
        assert world.now - before == pytest.approx(2.0)
        assert arriving.ended_with == "aborted"


@in_virtual_time
async def test_closing_waits_no_longer_than_the_tunnels_need() -> None:
    world = answers(None)
    async with running(world) as task:
        await world.until(lambda: world.link.current)
        tunnel = world.current
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        before = world.now
        await world.link.close("the agent stops", 2.0)
        assert world.now - before == pytest.approx(ROUND_TRIP)
        assert tunnel.ended_with is Code.GOING_AWAY


@in_virtual_time
async def test_a_tunnel_that_becomes_ready_when_all_is_over_is_closed() -> None:
    async def never_ready() -> FakeTunnel:
        return world.tunnel(ready_after=None)

    world = World(never_ready)
    async with running(world) as task:
        await world.until(lambda: world.tunnels)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        world.tunnels[0].ready()
        assert world.link.current is None and world.connected_at == []
        assert world.tunnels[0].ended_with is Code.GOING_AWAY


# The log


def test_the_same_failure_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="tower_agent.link")

    @in_virtual_time
    async def ten_minutes() -> None:
        both = [REFUSED, DialFailed("no answer; here it is 08:00:01"), REFUSED]
        both.append(DialFailed("no answer; here it is 08:00:02"))
        world = answers(*(both * 1000))
        async with running(world):
            await asyncio.sleep(600)
        assert len(world.dialled_at) > 250

    ten_minutes()
    # Two kinds of failure; in the slow phase a minute may pass without one of a kind.
    assert 14 <= len(caplog.records) <= 20
    assert "cannot connect: nothing listens there" in caplog.messages


def test_failures_are_news_again_after_a_minute_or_a_success() -> None:
    log = FailureLog()
    assert log.is_due("a", 0.0) and log.is_due("b", 1.0)
    assert not log.is_due("a", REPEAT_LOG_SECONDS - 0.1)
    assert log.is_due("a", REPEAT_LOG_SECONDS)
    log.clear()
    assert log.is_due("b", 61.0)


def test_ever_new_failures_do_not_fill_the_memory() -> None:
    log = FailureLog()
    for number in range(1000):
        log.is_due(chr(1000 + number), float(number))
    assert len(log._logged_at) <= 16
