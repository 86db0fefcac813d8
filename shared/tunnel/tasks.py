"""Who owns a background task: nobody may start one that nobody waits for.

`asyncio.create_task` is banned elsewhere (ruff TID251). A `TaskSet` is what a long-lived
object holds instead: its tasks have names, their exceptions are logged and never lost,
and closing it cancels and awaits them all.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

__all__ = ["TaskSet"]

_log = logging.getLogger(__name__)


class TaskSet:
    """Tasks that live as long as their owner."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        # Running tasks; the loop itself keeps only weak references.
        self._tasks: set[asyncio.Task[Any]] = set()
        # After close nothing may be started.
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def start(
        self, coroutine: Coroutine[Any, Any, Any], name: str
    ) -> asyncio.Task[Any]:
        """Run a coroutine; an exception that it raises is logged with its name."""
        if self._closed:
            coroutine.close()
            raise RuntimeError(f"{self.owner} is closed; {name} cannot start")
        task = asyncio.get_running_loop().create_task(
            coroutine, name=f"{self.owner}: {name}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel all and wait for them. Cancelling this waits no longer."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
