"""Raw targets: a stream `tcp/NAME` is relayed to an address of the agent's own list.

Nothing else can be reached: the server names a target, never an address.
"""

import asyncio
import logging

from shared.errors import Code
from shared.mux.stream import Stream
from shared.settings import HostPort
from shared.tunnel.relay import relay_pair
from shared.tunnel.tasks import TaskSet
from shared.words import short

__all__ = ["RawTargets"]

_log = logging.getLogger(__name__)

# The target is next door; whoever waits for it is not.
CONNECT_TIMEOUT_SECONDS = 5.0


class RawTargets:
    """Connects streams to the listed addresses."""

    def __init__(self, targets: dict[str, HostPort], tasks: TaskSet) -> None:
        self._targets = targets
        self._tasks = tasks

    def open(self, stream: Stream, name: str) -> None:
        """Give the stream its handler and connect it, or reset it."""
        address = self._targets.get(name)
        if address is None:
            stream.reset(
                Code.REFUSED,
                f"the agent has no target {name!r} (--target NAME=HOST:PORT)",
            )
            return
        connecting: asyncio.Task[None] | None = None

        def relay_over() -> None:
            # A stream that ends while we connect needs its socket no more.
            if connecting is not None:
                connecting.cancel()

        socket_end, stream_end = relay_pair(stream, relay_over)
        stream.handler = stream_end
        connecting = self._tasks.start(
            _connect(stream, socket_end, address), f"target {name}"
        )


async def _connect(
    stream: Stream, protocol: asyncio.BufferedProtocol, address: HostPort
) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            await loop.create_connection(lambda: protocol, address.host, address.port)
    except OSError as error:  # TimeoutError is one
        reason = f"target {address} cannot be reached: {short(error)}"
        _log.warning("%s", reason)
        # Whatever came for the target goes with the stream's handler.
        stream.reset(Code.UNREACHABLE, reason)
    else:
        stream.accept()
