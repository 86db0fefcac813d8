"""Whose turn it is, in virtual time.

Covered: many adds are one turn, due times, earlier ones win, spacing, a name that is worked on comes
again and never twice at a time, failures wait longer and longer and others do not, several workers.
"""

import asyncio
from collections import Counter

from tests.fakes.virtual_time import in_virtual_time
from tower_server.controllers.queue import (
    LAST_RETRY_SECONDS,
    SPACING_SECONDS,
    WorkQueue,
)


def new_queue() -> WorkQueue[str]:
    return WorkQueue(asyncio.get_running_loop().time)


def now() -> float:
    return asyncio.get_running_loop().time()


async def nobody_for(queue: WorkQueue[str], seconds: float) -> None:
    """Wait so long, and see that nobody's turn came."""
    try:
        async with asyncio.timeout(seconds):
            name = await queue.take()
    except TimeoutError:
        return
    raise AssertionError(f"{name} came at {now()}")


@in_virtual_time
async def test_many_adds_are_one_turn() -> None:
    queue = new_queue()
    for _ in range(100):
        queue.add("a")
    assert await queue.take() == "a" and len(queue) == 0
    queue.done("a")
    await nobody_for(queue, 1000)


@in_virtual_time
async def test_names_come_when_they_are_due_and_an_earlier_time_wins() -> None:
    queue = new_queue()
    queue.add("late", 30)
    queue.add("soon", 10)
    queue.add("late", 20)
    queue.add("late", 40)
    assert (await queue.take(), now()) == ("soon", 10)
    assert (await queue.take(), now()) == ("late", 20)
    queue.done("late")
    await nobody_for(queue, 1000)


@in_virtual_time
async def test_who_waits_is_woken_by_an_earlier_name() -> None:
    queue = new_queue()
    queue.add("late", 30)
    asyncio.get_running_loop().call_later(5, queue.add, "a")
    assert (await queue.take(), now()) == ("a", 5)


@in_virtual_time
async def test_a_storm_of_changes_is_spaced() -> None:
    queue = new_queue()
    turns = []
    queue.add("a")
    while now() < 10:
        assert await queue.take() == "a"
        turns.append(now())
        queue.add("a")  # while it is worked on
        queue.done("a")
        queue.add("a")
    gaps = [b - a for a, b in zip(turns, turns[1:], strict=False)]
    assert all(abs(gap - SPACING_SECONDS) < 1e-9 for gap in gaps)


@in_virtual_time
async def test_a_name_is_never_worked_on_twice_at_a_time() -> None:
    queue = new_queue()
    queue.add("a")
    await queue.take()
    queue.add("a")
    await nobody_for(queue, 100)
    queue.done("a")
    assert await queue.take() == "a"


@in_virtual_time
async def test_what_fails_waits_longer_and_longer_and_nobody_else_does() -> None:
    queue = new_queue()
    queue.add("bad")
    turns = []
    for _ in range(12):
        assert await queue.take() == "bad"
        turns.append(now())
        queue.add("bad")  # changes do not hurry it
        queue.failed("bad")
        queue.add("good")
        assert await queue.take() == "good"
        queue.done("good")
    gaps = [b - a for a, b in zip(turns, turns[1:], strict=False)]
    assert gaps[0] < 1 and gaps[-1] > 0.7 * LAST_RETRY_SECONDS
    assert max(gaps) <= 1.2 * LAST_RETRY_SECONDS
    assert await queue.take() == "bad"
    queue.done("bad")
    # All is well again, and so is its pace.
    queue.add("bad")
    start = now()
    assert await queue.take() == "bad" and now() - start <= SPACING_SECONDS


@in_virtual_time
async def test_several_workers_share_the_names() -> None:
    queue = new_queue()
    seen: Counter[str] = Counter()

    async def work() -> None:
        while True:
            name = await queue.take()
            await asyncio.sleep(1)
            seen[name] += 1
            queue.done(name)

    workers = [asyncio.get_running_loop().create_task(work()) for _ in range(8)]
    for number in range(80):
        queue.add(str(number))
    await asyncio.sleep(10.5)
    assert set(seen.values()) == {1} and len(seen) == 80
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)
