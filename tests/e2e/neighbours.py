"""What may stand around a Tower in a test: addresses, and asynchronous fakes on a thread."""

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

__all__ = ["free_port", "host_port", "in_thread"]

# A fake on loopback comes up and goes down in milliseconds; this only names a dead one.
FAKE_TIMEOUT_SECONDS = 10.0

# Below the ephemeral range of Linux: no outgoing connection takes one while its owner is dead.
PORT_RANGE = (15000, 32000)

T = TypeVar("T")


@contextlib.contextmanager
def in_thread(manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Run an asynchronous fake on an event loop of its own, for a test that blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake")
    thread.start()
    try:
        entering = asyncio.run_coroutine_threadsafe(manager.__aenter__(), loop)
        fake = entering.result(FAKE_TIMEOUT_SECONDS)
        try:
            yield fake
        finally:
            leaving = manager.__aexit__(None, None, None)
            asyncio.run_coroutine_threadsafe(leaving, loop).result(FAKE_TIMEOUT_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def host_port(address: str) -> tuple[str, int]:
    """HOST:PORT in its two parts."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def free_port() -> int:
    """A port that was free a moment ago: for an address that is fixed, or must outlive a restart."""
    while True:
        port = random.randint(*PORT_RANGE)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
