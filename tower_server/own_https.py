"""The server's own HTTPS on the shared port: tunnels to the listener, the rest to aiohttp.

Ends the TLS of a connection that the front door hands over, reads the first request
head, and gives connection and bytes to whoever serves that path. A tunnel gets the TLS
transport itself: aiohttp is never on the way of a byte. A connection of aiohttp's stays
behind `_Connection`, which ends it in time: nobody is authenticated there.

Every other answer than a tunnel's closes its connection. A proxy that ends TLS in front
of us would else keep it, send its next request over it, and that may be a tunnel's.
"""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import cast

from aiohttp import web

from shared.tunnel.tuning import clean_heap_top

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
    ) -> None:
        # Replaced when the server's certificate is renewed; open connections keep theirs.
        self.context = context
        self.make_web = make_web
        self.make_tunnel = make_tunnel
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
        connection = _Connection(self)
        clean_heap_top()  # of 5,000 idle tunnels that is 100 MB
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self.context,
                ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
            )
            await connection.decided
        except BaseException:
            # The loop only closes: its transport would live on for the TLS shutdown, on a
            # file descriptor that the caller closes now and the next connection gets.
            connection.abort()
            raise

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
        # For the head, then for the whole of aiohttp's work.
        self._deadline: asyncio.TimerHandle | None = None
        # aiohttp's protocol, once it is its connection.
        self._web: asyncio.Protocol | None = None
        # Done when the head is here, or the connection is over.
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass, only the same.
        self._transport = cast(asyncio.Transport, transport)
        self._owner.connections.add(self)
        self._abort_in(HEAD_DEADLINE_SECONDS)

    def data_received(self, data: bytes) -> None:
        if self._web is not None:
            self._web.data_received(data)
            return
        seen = self._seen
        searched = max(0, len(seen) - len(_END_OF_HEAD) + 1)
        seen += data
        if seen.find(_END_OF_HEAD, searched) >= 0:
            self._decide(bytes(seen))
        elif len(seen) > MAX_HEAD_BYTES:
            self.abort()

    def _decide(self, seen: bytes) -> None:
        self._seen.clear()
        owner = self._owner
        is_tunnel = seen.startswith(_TUNNEL_LINE)
        owner.counts["tunnel" if is_tunnel else "web"] += 1
        self._settle()
        if is_tunnel:
            self._make_way(owner.make_tunnel(), seen)
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
