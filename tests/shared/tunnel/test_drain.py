"""Draining tunnels, with real sessions in virtual time.

Covered: GOAWAY first, streams that end in time, at the last moment and not at all, streams
that cross the GOAWAY, tunnels that break meanwhile, no time at all, cancelling.
"""

import asyncio
from contextlib import suppress

import pytest

from shared.errors import Code
from shared.tunnel.drain import drain_tunnels
from tests.fakes.session_pair import Recorder, SessionPair
from tests.fakes.virtual_time import in_virtual_time

ROUND_TRIP = 0.05
REASON = "maintenance"


class Tunnel:
    """The agent's end of a session; its messages take half a round trip."""

    def __init__(self) -> None:
        self.pair = SessionPair()
        self.session = self.pair.agent.session
        # When and why it was closed.
        self.closed_at: float | None = None
        self.is_lost = False
        self._running = asyncio.ensure_future(self._exchange())

    async def _exchange(self) -> None:
        while True:
            await asyncio.sleep(ROUND_TRIP / 2)
            messages = [
                (end, end.outgoing.popleft())
                for end in (self.pair.agent, self.pair.server)
                if self.pair.pull(end)
                for _ in range(len(end.outgoing))
            ]
            for end, message in messages:
                self.pair.feed(self.pair.peer_of(end), message)

    @property
    def closed(self) -> bool:
        return self.is_lost

    def close(self, code: Code, reason: str) -> None:
        assert (code, reason) == (Code.GOING_AWAY, REASON)
        if self.closed_at is None:
            self.closed_at = now()

    def lose(self) -> None:
        self.is_lost = True
        self.session.close(Code.SESSION_LOST, "cut")

    def opened(self) -> Recorder:
        return self.pair.server.open()

    def far_of(self, near: Recorder) -> Recorder:
        return self.pair.agent.handlers[near.stream.id]

    async def stop(self) -> None:
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running


def now() -> float:
    return asyncio.get_running_loop().time()


def end_both(tunnel: Tunnel, near: Recorder) -> None:
    near.stream.write_eof()
    tunnel.far_of(near).stream.write_eof()


async def drained(tunnels: list[Tunnel], seconds: float) -> int:
    left = lambda: [t for t in tunnels if not t.is_lost]  # noqa: E731
    try:
        return await drain_tunnels(left, REASON, seconds)  # type: ignore[arg-type,return-value]
    finally:
        for tunnel in tunnels:
            await asyncio.sleep(ROUND_TRIP)
            await tunnel.stop()


@in_virtual_time
async def test_an_idle_tunnel_is_closed_when_nothing_can_come_any_more() -> None:
    tunnel = Tunnel()
    assert await drained([tunnel], 20.0) == 0
    assert [notice.reason for notice in tunnel.pair.server.notices] == [REASON]
    assert tunnel.closed_at is not None and ROUND_TRIP <= tunnel.closed_at < 0.3


@in_virtual_time
async def test_each_tunnel_is_closed_with_its_last_stream() -> None:
    early, late = Tunnel(), Tunnel()
    streams = [early.opened(), late.opened()]
    await asyncio.sleep(1.0)
    loop = asyncio.get_running_loop()
    loop.call_at(3.0, end_both, early, streams[0])
    loop.call_at(9.0, end_both, late, streams[1])
    assert await drained([early, late], 20.0) == 0
    assert early.closed_at is not None and 2.99 < early.closed_at < 3.3
    assert late.closed_at is not None and 8.99 < late.closed_at < 9.3
    assert [near.ends for near in streams] == [[None], [None]]


@in_virtual_time
async def test_what_has_not_ended_in_time_is_reset_with_the_reason() -> None:
    tunnel = Tunnel()
    near = tunnel.opened()
    control = tunnel.pair.agent.open("control")
    await asyncio.sleep(1.0)
    assert await drained([tunnel], 20.0) == 1
    assert tunnel.closed_at == pytest.approx(21.0)
    for recorder in (near, tunnel.far_of(near), control):
        assert [str(end) for end in recorder.ends] == [f"{REASON} (going_away)"]


@in_virtual_time
async def test_a_stream_that_crosses_the_goaway_gets_its_time_too() -> None:
    tunnel = Tunnel()
    loop = asyncio.get_running_loop()
    crossing: list[Recorder] = []
    loop.call_at(ROUND_TRIP / 4, lambda: crossing.append(tunnel.opened()))
    loop.call_at(5.0, lambda: end_both(tunnel, crossing[0]))
    assert await drained([tunnel], 20.0) == 0
    assert crossing[0].ends == [None]
    assert tunnel.closed_at is not None and 4.99 < tunnel.closed_at < 5.3


@in_virtual_time
async def test_a_tunnel_that_breaks_meanwhile_is_not_waited_for() -> None:
    tunnel = Tunnel()
    tunnel.opened()
    asyncio.get_running_loop().call_at(2.0, tunnel.lose)
    assert await drained([tunnel], 20.0) == 0
    assert now() < 2.3 and tunnel.closed_at is None


@in_virtual_time
async def test_no_time_is_none() -> None:
    tunnel = Tunnel()
    near = tunnel.opened()
    await asyncio.sleep(1.0)
    assert await drained([tunnel], 0.0) == 1
    assert tunnel.closed_at == 1.0 and near.ends
    assert await drain_tunnels(lambda: [], REASON, 20.0) == 0


@in_virtual_time
async def test_handlers_are_asked_again_and_again_to_wind_down() -> None:
    tunnel = Tunnel()
    near = tunnel.opened()
    await asyncio.sleep(1.0)
    far = tunnel.far_of(near)
    asked: list[float] = []

    def wind_down() -> None:
        asked.append(now())
        if len(asked) == 3:
            end_both(tunnel, near)

    far.wind_down = wind_down  # type: ignore[attr-defined]
    assert await drained([tunnel], 20.0) == 0
    assert asked[:3] == [pytest.approx(1.0 + 0.1 * look) for look in range(3)]


@in_virtual_time
async def test_cancelling_cuts_nothing_off() -> None:
    tunnel = Tunnel()
    near = tunnel.opened()
    await asyncio.sleep(1.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3.0):
            await drained([tunnel], 20.0)
    assert not near.ends and tunnel.closed_at is None
