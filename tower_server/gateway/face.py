"""Connections of callers to the gateway: plain HTTP behind the server's own TLS.

`own_https` ends the TLS and hands over a connection whose first request has a path of
ours; for a later request with another path it gets the connection back. Each is a byte
stream for a relay of shared.http, which is what an agent has for the sealed face.
"""

import asyncio
import ssl
from collections.abc import Callable
from datetime import datetime
from typing import cast

from shared.errors import Code, StreamReset
from shared.http.heads import RequestHead
from shared.http.identity import Review
from shared.http.relay import AnswerCounts, Limits, RequestRelay
from shared.http.status import Refusal
from shared.http.translation import Outgoing
from shared.http.upstream import Upstreams
from tower_server.gateway.callers import (
    FindByToken,
    GatewayCaller,
    certificate_caller,
    token_caller,
)
from tower_server.gateway.requests import Requests
from tower_server.gateway.streams import StreamPools
from tower_server.registry import Registry

__all__ = ["MAX_CONNECTIONS", "GatewayFace", "TakeOver"]

# Of callers, at a time: each costs a TLS state and a relay, 60 KiB. A watch is one of them.
MAX_CONNECTIONS = 4096

# What a caller has sent and the member has not taken: beyond this its socket is not read.
MAX_UNTAKEN_BYTES = 256 * 1024

# What may wait in a connection's transport before the member is told to pause.
WRITE_HIGH_BYTES = 256 * 1024

# Serves a connection from a request on that is not for us: the TLS transport, the TCP one
# under it, and what has come.
TakeOver = Callable[[asyncio.Transport, asyncio.Transport, bytes], None]


class GatewayFace:
    """Serves callers' connections; what their relays share (`RelayOwner`)."""

    def __init__(
        self,
        *,
        zone: str,
        registry: Registry,
        pools: StreamPools,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], datetime],
        find_by_token: FindByToken | None = None,
        limits: Limits | None = None,
    ) -> None:
        # None: no tokens are accepted.
        self.find_by_token = find_by_token
        self.zone = zone
        self.pools = pools
        self.loop = loop
        self.now = now
        self.limits = limits or Limits()
        # Each request says itself where it goes.
        self.pool: Upstreams | None = None
        # For people who look; relays count into it.
        self.answers = AnswerCounts()
        self.requests = Requests(registry, pools, now)
        self._relays: set[RequestRelay] = set()

    @property
    def open_connections(self) -> int:
        return len(self._relays)

    @property
    def is_full(self) -> bool:
        return len(self._relays) >= MAX_CONNECTIONS

    def protocol(
        self, source: asyncio.Transport, take_over: TakeOver
    ) -> asyncio.Protocol:
        """A protocol for one connection whose next request has a path of ours.

        Args:
            source: The TCP transport under the TLS: what is paused.
        """
        return _CallerConnection(self, source, take_over)

    def close(self, reason: str) -> None:
        """End all connections, whatever they are doing."""
        for relay in list(self._relays):
            relay.end(Code.GOING_AWAY, reason)

    def add(self, relay: RequestRelay) -> None:
        self._relays.add(relay)

    # -- relay.RelayOwner ---------------------------------------------------------------

    def ask(self, review: Review, on_answer: Callable[[Refusal | None], None]) -> None:
        raise AssertionError("the member's agent asks for reviews")

    def relay_closed(self, relay: RequestRelay) -> None:
        self._relays.discard(relay)


class _CallerConnection(asyncio.Protocol):
    """One connection: a `ByteStream` for its relay, a protocol for its TLS transport."""

    def __init__(
        self, face: GatewayFace, source: asyncio.Transport, take_over: TakeOver
    ) -> None:
        self._face = face
        self._source = source
        self._take_over = take_over
        # Set by connection_made; None again when it is over, or somebody else's.
        self._transport: asyncio.Transport | None = None
        self._relay: RequestRelay | None = None
        # Whose certificate was shown, or why that is none.
        self._caller: GatewayCaller | Refusal | None = None
        # What the relay got and has not taken.
        self._untaken_bytes = 0
        self._reading_is_paused = False

    # -- asyncio.Protocol ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass, only the same.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        caller: GatewayCaller | Refusal | None
        try:
            connection: ssl.SSLObject = transport.get_extra_info("ssl_object")
            caller = certificate_caller(connection, self._face.zone)
        except Refusal as refusal:
            caller = refusal
        if self._face.is_full:
            caller = Refusal(
                code=503,
                message=f"the gateway has {MAX_CONNECTIONS} connections open, which is its limit",
                retry_after_seconds=1,
            )
        self._caller = caller
        known = caller if isinstance(caller, GatewayCaller) else None
        self._relay = RequestRelay(
            self,
            translate=self._translate,
            owner=self._face,
            not_after=known.not_after if known is not None else None,
            serial=known.serial if known is not None else None,
        )
        self._face.add(self._relay)

    def data_received(self, data: bytes) -> None:
        self._untaken_bytes += len(data)
        if self._relay is not None:
            self._relay.data_received(data)
        if (
            self._untaken_bytes > MAX_UNTAKEN_BYTES
            and not self._reading_is_paused
            and not self._source.is_closing()
        ):
            self._reading_is_paused = True
            self._source.pause_reading()

    def eof_received(self) -> bool | None:
        if self._relay is not None:
            self._relay.eof_received()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.stream_closed(
                None if error is None else StreamReset(Code.CANCELLED, str(error))
            )

    def pause_writing(self) -> None:
        if self._relay is not None:
            self._relay.pause_writing()

    def resume_writing(self) -> None:
        if self._relay is not None:
            self._relay.resume_writing()

    # -- ByteStream ---------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        """TLS cannot end one direction here: close, after what is queued."""
        self._resume_reading()
        if self._transport is not None:
            self._transport.close()

    def reset(self, code: Code, reason: str) -> None:
        self._relay = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def taken(self, count: int) -> None:
        self._untaken_bytes -= count
        if self._untaken_bytes <= MAX_UNTAKEN_BYTES // 2:
            self._resume_reading()

    def _resume_reading(self) -> None:
        if self._reading_is_paused and not self._source.is_closing():
            self._reading_is_paused = False
            self._source.resume_reading()

    # -- requests -----------------------------------------------------------------------

    def _translate(self, raw: bytes) -> Outgoing:
        return self._face.requests.translate(raw, self._authenticate, self._hand_over)

    def _authenticate(self, head: RequestHead) -> GatewayCaller:
        caller = self._caller
        if isinstance(caller, GatewayCaller):
            return caller
        if isinstance(caller, Refusal):
            raise Refusal(
                code=caller.code,
                message=caller.message,
                retry_after_seconds=caller.retry_after_seconds,
            )
        return token_caller(head, self._face.find_by_token)

    def _hand_over(self, data: bytes) -> None:
        """A request for another part of the server: it goes on with the connection."""
        self._resume_reading()
        self._relay = None
        transport, self._transport = self._transport, None
        if transport is not None:
            self._take_over(transport, self._source, data)
