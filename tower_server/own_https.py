"""The server's own HTTPS on the shared port: tunnels, the gateway, and the rest to aiohttp.

Ends the TLS of a connection that the front door hands over, reads the first request
head, and gives connection and bytes to whoever serves that path. A tunnel and the gateway
get the TLS transport itself: aiohttp is never on the way of a byte. A connection of
aiohttp's stays behind `_Connection`, which ends it in time: nobody is authenticated there.

Every answer of aiohttp's closes its connection. A proxy that ends TLS in front of us would
else keep it, send its next request over it, and that may be a tunnel's. The gateway keeps
connections, and gives one back to us when a request comes on it that is not its own.

The TLS is put on a TCP transport that we know, because that one is what may be paused:
uvloop's TLS transports lose what they hold when they are paused at the end.
"""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from shared.tunnel.tuning import clean_heap_top
from tower_server.gateway.face import TakeOver
from tower_server.gateway.routes import begins_with_route

__all__ = ["OwnHttps", "close_after_answer"]

# A request head; aiohttp allows half of it, the tunnel's upgrade has about 2 KiB.
MAX_HEAD_BYTES = 64 * 1024
# From the end of the TLS handshake to the end of the head.
HEAD_DEADLINE_SECONDS = 10.0
TLS_HANDSHAKE_SECONDS = 10.0
# For the peer's close_notify; many never send one.
TLS_SHUTDOWN_SECONDS = 2.0
# One request with its answer. A join waits 3 s for the store at most; the rest is for
# slow links, and an end to bodies that trickle in.
WEB_SECONDS = 30.0
# Connections with aiohttp, each about 150 KiB. Tunnels do not count.
MAX_WEB_CONNECTIONS = 256

# More than anybody sends before we answer: the kernel keeps it until TLS reads it.
_UNREAD_BYTES = 64 * 1024

_TUNNEL_LINE = b"GET /tunnel "
_END_OF_HEAD = b"\r\n\r\n"


async def close_after_answer(
    request: web.Request, response: web.StreamResponse
) -> None:
    """For aiohttp's `on_response_prepare`: one request per connection (see above)."""
    response.force_close()
    # By now aiohttp has chosen the headers.
    response.headers["Connection"] = "close"


class OwnHttps:
    """Serves connections of the server's own HTTPS."""

    def __init__(
        self,
        context: ssl.SSLContext,
        make_web: Callable[[], asyncio.Protocol],
        make_tunnel: Callable[[], asyncio.Protocol],
        make_gateway: Callable[[asyncio.Transport, TakeOver], asyncio.Protocol],
    ) -> None:
        # Replaced when the server's certificate is renewed; open connections keep theirs.
        self.context = context
        self.make_web = make_web
        self.make_tunnel = make_tunnel
        self.make_gateway = make_gateway
        # Connections whose head is not here yet, or that aiohttp serves.
        self.connections: set[_Connection] = set()
        self.web_connections = 0
        # Connections by what became of them, for status and metrics.
        self.counts: Counter[str] = Counter()

    async def serve(self, accepted: socket.socket) -> None:
        """Take over a connection; returns when its first request head is here, or it ended.

        Raises OSError (ssl.SSLError is one) when there is no TLS to be had; then, and when
        it is cancelled, the socket is closed or the caller's to close.
        """
        loop = asyncio.get_running_loop()
        connection = _Connection(self)
        # The transport begins to read at once, and what it reads is lost to TLS: so there
        # is nothing to be read until TLS is there. (To pause it is too early on uvloop.)
        _wake_at(accepted, _UNREAD_BYTES)
        source, _ = await loop.connect_accepted_socket(asyncio.Protocol, accepted)
        clean_heap_top()  # of 5,000 idle tunnels that is 100 MB
        try:
            # By then start_tls has put its protocol there.
            loop.call_soon(_wake_at, accepted, 1)
            transport = await loop.start_tls(
                source,
                connection,
                self.context,
                server_side=True,
                ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
            )
            assert transport is not None
            connection.connected(transport, source)
            await connection.decided
        except BaseException:
            # The loop only closes: its transport would live on for the TLS shutdown, on a
            # file descriptor that the caller closes now and the next connection gets.
            source.abort()
            raise

    def take_over(
        self, transport: asyncio.Transport, source: asyncio.Transport, data: bytes
    ) -> None:
        """Serve a connection of the gateway's from a request on that is not for it."""
        connection = _Connection(self)
        transport.set_protocol(connection)
        connection.connected(transport, source)
        connection.data_received(data)

    def close(self) -> None:
        """Drop every connection but the tunnels."""
        for connection in list(self.connections):
            connection.abort()


class _Connection(asyncio.Protocol):
    """Reads the first request head, then makes way for a tunnel's protocol, or passes
    everything on to aiohttp's."""

    def __init__(self, owner: OwnHttps) -> None:
        self._owner = owner
        self._seen = bytearray()
        self._transport: asyncio.Transport | None = None
        # The TCP one under its TLS. Set by connected.
        self._source: asyncio.Transport | None = None
        # For the head, then for the whole of aiohttp's work.
        self._deadline: asyncio.TimerHandle | None = None
        # aiohttp's protocol, once it is its connection.
        self._web: asyncio.Protocol | None = None
        # Done when the head is here, or the connection is over.
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connected(
        self, transport: asyncio.Transport, source: asyncio.Transport
    ) -> None:
        """Called instead of connection_made."""
        if self.decided.done():
            return  # it has been lost meanwhile
        self._transport, self._source = transport, source
        self._owner.connections.add(self)
        self._abort_in(HEAD_DEADLINE_SECONDS)
        self._look(0)

    def data_received(self, data: bytes) -> None:
        if self._web is not None:
            self._web.data_received(data)
            return
        searched = max(0, len(self._seen) - len(_END_OF_HEAD) + 1)
        self._seen += data
        # Before we are connected, a request may be here already.
        if self._transport is not None:
            self._look(searched)

    def _look(self, searched: int) -> None:
        seen = self._seen
        if seen.find(_END_OF_HEAD, searched) >= 0:
            self._decide(bytes(seen))
        elif len(seen) > MAX_HEAD_BYTES:
            self.abort()

    def _decide(self, seen: bytes) -> None:
        self._seen.clear()
        owner = self._owner
        is_tunnel = seen.startswith(_TUNNEL_LINE)
        is_gateway = not is_tunnel and begins_with_route(seen)
        kind = "tunnel" if is_tunnel else "gateway" if is_gateway else "web"
        owner.counts[kind] += 1
        self._settle()
        if is_tunnel:
            self._make_way(owner.make_tunnel(), seen)
        elif is_gateway:
            assert self._source is not None  # it is connected
            gateway = owner.make_gateway(self._source, owner.take_over)
            self._make_way(gateway, seen)
        elif owner.web_connections >= MAX_WEB_CONNECTIONS:
            owner.counts["too_many_web"] += 1
            self.abort()
        else:
            owner.web_connections += 1
            self._abort_in(WEB_SECONDS)
            self._web = owner.make_web()
            assert self._transport is not None
            self._web.connection_made(self._transport)
            self._web.data_received(seen)

    def _make_way(self, protocol: asyncio.Protocol, seen: bytes) -> None:
        transport, self._transport = self._transport, None
        assert transport is not None
        if self._deadline is not None:
            self._deadline.cancel()
        self._owner.connections.discard(self)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(seen)

    def eof_received(self) -> bool | None:
        return self._web.eof_received() if self._web is not None else None

    def pause_writing(self) -> None:
        if self._web is not None:
            self._web.pause_writing()

    def resume_writing(self) -> None:
        if self._web is not None:
            self._web.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._owner.connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        self._settle()
        web, self._web = self._web, None
        if web is not None:
            self._owner.web_connections -= 1
            web.connection_lost(error)

    def _settle(self) -> None:
        if not self.decided.done():
            self.decided.set_result(None)

    def _abort_in(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(seconds, self.abort)


def _wake_at(accepted: socket.socket, byte_count: int) -> None:
    with suppress(OSError):  # it may be closed by now
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, byte_count)
