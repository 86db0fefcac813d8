"""Raw TCP entries for tests and bench: a local port whose connections go to one target.

Off by default and without any authentication: whoever reaches the port reaches the
target. The command line allows them on loopback addresses only.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from certs.names import ClusterName
from shared.errors import StreamReset
from shared.mux.stream import Stream
from shared.tunnel.relay import relay_pair
from tower_server.registry import Registry
from tower_server.settings import TcpEntry

__all__ = ["RawEntry"]

_log = logging.getLogger(__name__)

_BACKLOG = 1024

# l_onoff=1, l_linger=0: close() sends RST.
_LINGER_RESET = struct.pack("ii", 1, 0)


class RawEntry:
    """One listening port that leads to `cluster/target`."""

    def __init__(self, entry: TcpEntry, registry: Registry) -> None:
        self._cluster: ClusterName = entry.cluster
        self._target = f"tcp/{entry.target}"
        self._listen = entry.listen
        self._registry = registry
        # Set while it listens.
        self._server: asyncio.Server | None = None

    async def listen(self) -> tuple[str, int]:
        """Bind and begin; returns the address with the real port.

        Raises OSError when the address cannot be had.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connection, self._listen.host, self._listen.port, backlog=_BACKLOG
        )
        bound: socket.socket = self._server.sockets[0]
        address = bound.getsockname()
        return address[0], address[1]

    async def close(self) -> None:
        """Stop listening; what is connected stays with its relay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _connection(self) -> asyncio.Protocol:
        return _Arrival(self._open)

    def _open(self) -> Stream | None:
        session = self._registry.pick(self._cluster)
        if session is None:
            _log.warning("%s: raw entry used while the agent is away", self._cluster)
            return None
        try:
            return session.connection.session.open_stream(self._target)
        except (StreamReset, ValueError) as error:
            _log.warning("%s: raw entry to %s: %s", self._cluster, self._target, error)
            return None


class _Arrival(asyncio.Protocol):
    """A connection until it has its stream. Not opened before, for one that broke in the
    backlog would leave it behind."""

    def __init__(self, open_stream: Callable[[], Stream | None]) -> None:
        self._open_stream = open_stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass, only the same.
        transport = cast(asyncio.Transport, transport)
        stream = self._open_stream()
        if stream is None:
            # By a reset, so that nobody takes it for an empty answer.
            _abort_with_reset(transport)
            return
        socket_end, stream_end = relay_pair(stream)
        stream.handler = stream_end
        transport.set_protocol(socket_end)
        socket_end.connection_made(transport)


def _abort_with_reset(transport: asyncio.Transport) -> None:
    raw = transport.get_extra_info("socket")
    with suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    transport.abort()
