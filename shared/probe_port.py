"""A plain HTTP port for probes and scrapes, bounded: who reaches it may ask, and not more.

Nobody is authenticated there, and kubelets and Prometheus need it from other machines. So
there are only so many connections, each for one request and a limited time: strangers who
hold them cost us little, and never the files that tunnels need.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from aiohttp import web

from shared.settings import HostPort

__all__ = ["Page", "serve_pages"]

# Probes of a kubelet and a few Prometheus servers, some of them slow. A stranger can keep
# others out by holding all; then probes fail, and nothing else.
MAX_CONNECTIONS = 64

# From the connection to the last byte of the answer. A scrape of 10,000 clusters takes some
# seconds; Prometheus gives up after 10 s by default.
CONNECTION_SECONDS = 30.0

# For answers that are on their way when the port closes; aiohttp would wait a minute.
SHUTDOWN_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Page:
    """An answer to GET and HEAD."""

    text: str | bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


@asynccontextmanager
async def serve_pages(
    address: HostPort,
    pages: Mapping[str, Callable[[], Awaitable[Page]]],
    *,
    reuse_port: bool = False,
) -> AsyncIterator[HostPort]:
    """Serve pages by path while the context lasts; gives the address with the real port.

    Raises:
        OSError: If the address cannot be bound.
    """
    application = web.Application()
    for path, page in pages.items():
        application.router.add_get(path, _handler(page))
    application.on_response_prepare.append(_close_after_answer)
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS
    )
    await runner.setup()
    connections: set[_Connection] = set()
    listener: asyncio.Server | None = None
    try:
        # `make` is aiohttp's own factory; the runner has it from setup to cleanup.
        make = cast(Callable[[], asyncio.Protocol], runner.server)
        listener = await asyncio.get_running_loop().create_server(
            lambda: _Connection(make(), connections),
            address.host,
            address.port,
            reuse_port=reuse_port or None,
        )
        bound: socket.socket = listener.sockets[0]
        yield HostPort(host=address.host, port=bound.getsockname()[1])
    finally:
        if listener is not None:
            listener.close()
        await runner.cleanup()
        for connection in list(connections):
            connection.abort()


def _handler(
    page: Callable[[], Awaitable[Page]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_request: web.Request) -> web.Response:
        made = await page()
        body = made.text.encode() if isinstance(made.text, str) else made.text
        headers = {"Content-Type": made.content_type}
        return web.Response(status=made.status, body=body, headers=headers)

    return handle


async def _close_after_answer(
    _request: web.Request, response: web.StreamResponse
) -> None:
    response.force_close()
    response.headers["Connection"] = "close"


class _Connection(asyncio.Protocol):
    """Hands a connection to aiohttp's protocol, if there is room, and ends it in time."""

    def __init__(
        self, web_protocol: asyncio.Protocol, listed: "set[_Connection]"
    ) -> None:
        self._web = web_protocol
        # All that are open.
        self._listed = listed
        # Set while it is one of them.
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass, only the same.
        transport = cast(asyncio.Transport, transport)
        if len(self._listed) >= MAX_CONNECTIONS:
            transport.abort()
            return
        self._transport = transport
        self._listed.add(self)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(CONNECTION_SECONDS, self.abort)
        self._web.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._web.data_received(data)

    def eof_received(self) -> bool | None:
        return self._web.eof_received() if self._transport is not None else None

    def pause_writing(self) -> None:
        self._web.pause_writing()

    def resume_writing(self) -> None:
        self._web.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is None:
            return
        self._transport = None
        self._listed.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        self._web.connection_lost(error)
