"""Background tasks have an owner: names, logged failures, and an end.

Covered: running and finishing, a task that fails, closing, starting after the end.
"""

import asyncio
import logging

import pytest

from shared.tunnel.tasks import TaskSet


async def test_a_task_has_a_name_and_leaves_when_it_is_done() -> None:
    tasks = TaskSet("registry")
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    task = tasks.start(work(), "cleaning")
    assert task.get_name() == "registry: cleaning" and len(tasks) == 1
    await done.wait()
    await asyncio.sleep(0)
    assert len(tasks) == 0


async def test_a_task_that_fails_is_logged_with_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = TaskSet("registry")

    async def fail() -> None:
        raise ValueError("no such thing")

    task = tasks.start(fail(), "cleaning")
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError):
        await task
    await asyncio.sleep(0)
    assert "registry: cleaning failed" in caplog.text and "no such thing" in caplog.text
    assert len(tasks) == 0


async def test_closing_cancels_all_and_waits_for_their_cleanup(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks, cleaned = TaskSet("registry"), []

    async def wait(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    for number in range(3):
        tasks.start(wait(number), "waiting")
    await asyncio.sleep(0)
    await tasks.close()
    assert sorted(cleaned) == [0, 1, 2] and len(tasks) == 0 and caplog.text == ""
    await tasks.close()


async def test_nothing_starts_after_the_end() -> None:
    tasks = TaskSet("registry")
    await tasks.close()

    async def never() -> None:
        raise AssertionError

    with pytest.raises(RuntimeError, match="registry is closed; late cannot start"):
        tasks.start(never(), "late")
