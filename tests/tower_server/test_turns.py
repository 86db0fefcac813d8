"""Whose turn it is to shake hands.

The aspects: the newest first, a few in each turn of the loop; no more under way than may be;
waiting is cancelled without a trace, also in the moment when the turn comes; an address that
calls often does not keep the others waiting, and is not forgotten.
"""

import asyncio
from unittest import mock

import pytest

from tests.fakes.host_side import until
from tower_server.turns import BEGIN_PER_TURN, OFTEN_PER_SECOND, Turns


class Crowd:
    """Callers with numbers, in the order in which their turn came."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[int] = []

    async def call(self, number: int, source: str) -> None:
        await self.turns.begin(source)
        self.begun.append(number)

    def gather(self, count: int, source: str = "") -> list[asyncio.Task[None]]:
        """Without a source each comes from an address of its own."""
        return [
            asyncio.create_task(self.call(number, source or f"address {number}"))
            for number in range(count)
        ]


async def test_a_single_caller_begins_at_once() -> None:
    turns = Turns()
    await asyncio.wait_for(turns.begin("a"), 1)
    assert turns.under_way == 1
    turns.end()
    assert turns.under_way == 0


async def test_of_a_crowd_the_newest_begin_first_and_few_at_a_time() -> None:
    crowd = Crowd(Turns())
    callers = crowd.gather(3 * BEGIN_PER_TURN)
    sizes = []
    while len(crowd.begun) < len(callers):
        sizes.append(len(crowd.begun))
        await asyncio.sleep(0)
    assert max(b - a for a, b in zip(sizes, sizes[1:], strict=False)) <= BEGIN_PER_TURN
    assert crowd.begun == list(reversed(range(len(callers))))


async def test_no_more_are_under_way_than_may_be() -> None:
    with mock.patch("tower_server.turns.MAX_HANDSHAKES", 2):
        crowd = Crowd(Turns())
        callers = crowd.gather(3)
        await until(lambda: len(crowd.begun) == 2)
        for _ in range(10):
            await asyncio.sleep(0)
        assert crowd.begun == [2, 1] and not callers[0].done()
        crowd.turns.end()
        await callers[0]
        assert crowd.turns.under_way == 2


async def test_who_stops_waiting_leaves_no_trace() -> None:
    with mock.patch("tower_server.turns.MAX_HANDSHAKES", 1):
        turns = Turns()
        await turns.begin("a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await turns.begin("a")
        turns.end()
        await asyncio.wait_for(turns.begin("a"), 1)
        assert turns.under_way == 1


async def test_a_turn_that_comes_too_late_is_given_to_the_next() -> None:
    turns = Turns()
    caller = asyncio.create_task(turns.begin("a"))
    await until(lambda: turns.under_way == 1, seconds=1)
    # Its turn has come, and it has not run since.
    caller.cancel()
    await asyncio.wait((caller,))
    assert turns.under_way == (0 if caller.cancelled() else 1)


async def test_who_calls_often_keeps_nobody_waiting_and_is_not_forgotten() -> None:
    """He is always the newest: each of his calls is followed by the next."""
    crowd = Crowd(Turns())
    calls = 0

    async def call_again_and_again() -> None:
        nonlocal calls
        while True:
            await crowd.turns.begin("a stranger")
            crowd.turns.end()
            calls += 1

    flood = [
        asyncio.create_task(call_again_and_again()) for _ in range(4 * BEGIN_PER_TURN)
    ]
    await until(lambda: calls > OFTEN_PER_SECOND)
    before = calls
    async with asyncio.timeout(5):
        await asyncio.gather(*crowd.gather(5 * BEGIN_PER_TURN))
    assert calls > before
    for each in flood:
        each.cancel()
    await asyncio.wait(flood)
    assert crowd.turns.under_way == len(crowd.begun)


async def test_an_address_is_given_another_chance_every_second() -> None:
    turns = Turns()
    for _ in range(2 * OFTEN_PER_SECOND):
        await turns.begin("a")
    assert turns._calls["a"] == 2 * OFTEN_PER_SECOND
    turns._second_ends = 0.0
    await turns.begin("a")
    assert turns._calls["a"] == 1
