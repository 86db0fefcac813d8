"""The demo apiserver on an event loop of its own, for tests that block: kubectl, subprocesses, urllib."""

import asyncio
import threading
from pathlib import Path
from typing import Self

from tests.fakes.apiserver.server import DemoApiserver

__all__ = ["ThreadedDemoApiserver"]

START_TIMEOUT_SECONDS = 30.0


class ThreadedDemoApiserver:
    """Runs a DemoApiserver in a thread while the `with` block runs; `.server` has its attributes."""

    def __init__(self, name: str, directory: Path) -> None:
        self.server = DemoApiserver(name, directory)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"demo {name}", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self.server.start(), self._loop)
        started.result(START_TIMEOUT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        stopped = asyncio.run_coroutine_threadsafe(self.server.stop(), self._loop)
        stopped.result(START_TIMEOUT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
