"""A warm pool of connections to one apiserver, kept alive and used one request at a time.

A user of the pool is a small object with five methods (`UpstreamUser`). It asks for a
connection with `take`; the connection hands it every byte as it comes, until the user
gives it back with `release` or ends it with `abort`. No task runs for a request: only a
new connection needs one, which the pool owns.

Longer than our files are: beside the pool stand the interfaces that others have, too.
"""

import asyncio
import re
from collections import deque
from typing import Protocol, cast

from shared.http.apiserver import ApiServer
from shared.http.route import open_route, why_no_route
from shared.http.status import Refusal
from shared.outbound import ProxyRefused

__all__ = [
    "CONNECT_TIMEOUT_SECONDS",
    "IDLE_SECONDS",
    "MAX_CONNECTIONS",
    "MAX_IDLE_CONNECTIONS",
    "Upstream",
    "UpstreamConnection",
    "UpstreamPool",
    "UpstreamUser",
    "Upstreams",
]

# Paths whose answers come from a Pod, a Service or a Node behind the apiserver.
_PROXIED = re.compile(rb"/(?:pods|services|nodes)/[^/?]+/proxy(?:[/?]|$)")

# TCP and TLS to a neighbour; what takes longer is down (client-go waits 30 s for a WAN).
CONNECT_TIMEOUT_SECONDS = 5.0

# Go's servers close idle connections after 90 s or more: we are always the first, so a
# request never meets the apiserver's closing in flight.
IDLE_SECONDS = 60.0

# Each watch holds one connection. An apiserver takes 400 + 200 requests in flight by
# default and any number of watches; the agent's open files are the next limit.
MAX_CONNECTIONS = 4096

# A burst of requests may keep this many for the next burst. Each costs 35 to 125 KiB.
MAX_IDLE_CONNECTIONS = 64

# What may wait in a connection's transport before its user is told to pause.
WRITE_HIGH_BYTES = 256 * 1024


class Upstream(Protocol):
    """A connection, as its user sees it: `UpstreamConnection`, or one of another kind."""

    # It has served a request before, so the other end may have closed it unseen.
    is_reused: bool
    # Something of the current answer has come.
    has_answered: bool
    # Too much waits to be sent: its user should write no more for now.
    writing_is_paused: bool

    def write(self, data: bytes) -> None: ...

    def half_close(self) -> bool:
        """End our direction only; False where that cannot be."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def release(self) -> None:
        """The answer was complete: the connection may serve somebody else."""

    def abort(self) -> None:
        """End it now; what the other end does for us is cancelled."""


class Upstreams(Protocol):
    """Where connections come from: `UpstreamPool`, or one of another kind."""

    @property
    def base_path(self) -> bytes:
        """What precedes every path at the other end, and not at the client's."""

    @property
    def far_end(self) -> str:
        """Who answers there, for sentences."""

    def take(
        self, user: "UpstreamUser", *, is_fresh: bool = False
    ) -> Upstream | None: ...

    def forget(self, user: "UpstreamUser") -> None: ...

    def own_refusal(self, target: bytes) -> str | None:
        """Why a 401 to this request is not the caller's but ours; None if it is the caller's."""


class UpstreamUser(Protocol):
    """Who uses a connection: the other half of `Upstream`."""

    def upstream_ready(self, connection: Upstream) -> None:
        """The connection that `take` could not give at once."""

    def upstream_failed(self, refusal: Refusal) -> None:
        """There will be no connection."""

    def upstream_received(self, data: bytes) -> None:
        """The next bytes of the answer."""

    def upstream_ended(self, error: Exception | None) -> None:
        """The apiserver closed the connection; nothing follows."""

    def upstream_drained(self) -> None:
        """The connection's `writing_is_paused` has become false again."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to the apiserver; at most one user at a time."""

    def __init__(self, pool: "UpstreamPool") -> None:
        self._pool = pool
        # Set by connection_made.
        self._transport: asyncio.Transport | None = None
        # What is paused: the TCP transport, also under TLS. Set by connection_made or connected.
        self._source: asyncio.Transport | None = None
        # Who gets the bytes; None while idle.
        self.user: UpstreamUser | None = None
        # It has served a request before, so the apiserver may have closed it unseen.
        self.is_reused = False
        # It was made to where the apiserver was before, or with a credential that is replaced.
        self.is_outdated = False
        # Something of the current answer has come.
        self.has_answered = False
        # Too much waits to be sent: its user should write no more for now.
        self.writing_is_paused = False
        # When it became idle last.
        self.idle_since = 0.0
        self._reading_is_paused = False

    @property
    def is_open(self) -> bool:
        """Whether it may be used; one that is closing stays in the pool for a moment."""
        return self._transport is not None and not self._transport.is_closing()

    # -- its user -----------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def half_close(self) -> bool:
        """End our direction only; False where TLS or the loop cannot."""
        if self._transport is None or not self._transport.can_write_eof():
            return False
        self._transport.write_eof()
        return True

    def pause_reading(self) -> None:
        if not self._reading_is_paused and self._has_source:
            self._reading_is_paused = True
            cast(asyncio.Transport, self._source).pause_reading()

    def resume_reading(self) -> None:
        if self._reading_is_paused and self._has_source:
            self._reading_is_paused = False
            cast(asyncio.Transport, self._source).resume_reading()

    @property
    def _has_source(self) -> bool:
        """Whether there is something to pause: not when it is closing, or closed."""
        return (
            self._transport is not None
            and self._source is not None
            and not self._source.is_closing()
        )

    def release(self) -> None:
        """The answer was complete: the connection may serve somebody else."""
        self.user = None
        self.is_reused = True
        self.has_answered = False
        if self._reading_is_paused:
            self.resume_reading()
        self._pool.released(self)

    def close(self) -> None:
        """End it after what is still to be sent."""
        self.user = None
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End it now; what the apiserver does for us is cancelled."""
        self.user = None
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass, only the same.
        transport = cast(asyncio.Transport, transport)
        self._transport = self._source = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def connected(
        self, transport: asyncio.Transport, source: asyncio.Transport
    ) -> None:
        """Called instead of connection_made, with the transport and the TCP one under its TLS.

        Reading is paused on the latter: the TLS in between keeps nothing back.
        """
        self.connection_made(transport)
        self._source = source

    def data_received(self, data: bytes) -> None:
        user = self.user
        if user is None:
            # Bytes that nobody asked for: the next answer would be the wrong one.
            self.abort()
            return
        self.has_answered = True
        user.upstream_received(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        user, self.user = self.user, None
        self._pool.lost(self)
        if user is not None:
            user.upstream_ended(error)

    def pause_writing(self) -> None:
        self.writing_is_paused = True

    def resume_writing(self) -> None:
        self.writing_is_paused = False
        if self.user is not None:
            self.user.upstream_drained()


class UpstreamPool:
    """The connections to one apiserver. Belongs to one event loop; `close` ends it."""

    def __init__(
        self,
        apiserver: ApiServer,
        *,
        loop: asyncio.AbstractEventLoop,
        max_connections: int = MAX_CONNECTIONS,
        max_idle: int = MAX_IDLE_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
        connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    ) -> None:
        self.apiserver = apiserver
        self._loop = loop
        self._max_connections = max_connections
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        # Every connection that is open, used or idle.
        self._connections: set[UpstreamConnection] = set()
        # The last one given back is the first one taken: the others may grow old.
        self._idle: deque[UpstreamConnection] = deque()
        # Users without a connection, in order. Never more than connects under way.
        self._waiting: deque[UpstreamUser] = deque()
        # Connects under way; the loop itself keeps only weak references.
        self._connects: set[asyncio.Task[None]] = set()
        # Runs while there are idle connections.
        self._idle_timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        # Counts renewals.
        self._generation = 0

    @property
    def base_path(self) -> bytes:
        return self.apiserver.base_path

    @property
    def far_end(self) -> str:
        return "the apiserver"

    def own_refusal(self, target: bytes) -> str | None:
        """What it means that the apiserver answers 401: it does not accept our own credential.

        But for what comes from behind it, where the caller may have logged in or not.
        """
        if _PROXIED.search(target):
            return None
        server = self.apiserver
        server.credential.was_refused()
        return (
            f"the apiserver at {server} does not accept {server.speaker.credential} "
            f"(401); {server.speaker.renewal}"
        )

    @property
    def idle_connections(self) -> int:
        return len(self._idle)

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def take(
        self, user: UpstreamUser, *, is_fresh: bool = False
    ) -> UpstreamConnection | None:
        """A connection for this user, now; or None, and it hears of one later.

        `is_fresh` asks for one that has served nothing yet. A user that does not want it
        any more says `forget`.
        """
        while self._idle and not is_fresh:
            connection = self._idle.pop()
            if connection.is_open:
                connection.user = user
                return connection
        self._waiting.append(user)
        self._connect(user)
        return None

    def forget(self, user: UpstreamUser) -> None:
        """This user waits no longer; the connection under way serves the next."""
        if user in self._waiting:
            self._waiting.remove(user)

    def renew(self, apiserver: ApiServer) -> None:
        """The same apiserver by another address or credential: for what is connected from now on.

        Requests that are being answered go on; then their connections are closed.
        """
        self.apiserver = apiserver
        for connection in self._connections:
            connection.is_outdated = True
        # Those under way as well: they began with the old address.
        self._generation += 1
        while self._idle:
            self._idle.popleft().close()

    def released(self, connection: UpstreamConnection) -> None:
        """A connection is free; `UpstreamConnection.release` calls this."""
        if (
            self._is_closed
            or connection.is_outdated
            or len(self._idle) >= self._max_idle
        ):
            connection.close()
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._idle_timer is None:
            self._idle_timer = self._loop.call_later(
                self._idle_seconds, self._close_idle
            )

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection is gone; `UpstreamConnection` calls this."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """End all connections now and wait for the connects under way."""
        self._is_closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for connection in list(self._connections):
            user = connection.user
            connection.abort()
            if user is not None:
                user.upstream_ended(None)
        connects = list(self._connects)
        for task in connects:
            task.cancel()
        while self._waiting:
            self._fail_next(Refusal(code=503, message=f"{self._name} is stopping"))
        if connects:
            await asyncio.wait(connects)

    # -- inside -------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self.apiserver.speaker.name

    def _connect(self, user: UpstreamUser) -> None:
        if self._is_closed:
            self._fail_later(503, f"{self._name} is stopping")
        elif len(self._connections) + len(self._connects) >= self._max_connections:
            self._fail_later(
                503,
                f"{self._name} has {self._max_connections} connections to the apiserver "
                "open, which is its limit",
            )
        else:
            task = self._loop.create_task(
                self._open_connection(), name=f"connect to {self.apiserver}"
            )
            self._connects.add(task)
            task.add_done_callback(self._connects.discard)

    def _fail_later(self, code: int, message: str) -> None:
        # Not at once: the user is still inside of its call of `take`.
        refusal = Refusal(code=code, message=message, retry_after_seconds=1)
        self._loop.call_soon(self._fail_next, refusal)

    def _fail_next(self, refusal: Refusal) -> None:
        if self._waiting:
            self._waiting.popleft().upstream_failed(refusal)

    async def _open_connection(self) -> None:
        server, generation = self.apiserver, self._generation
        connection = UpstreamConnection(self)
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                connection.connected(*await open_route(server, connection))
        except (OSError, ProxyRefused) as error:  # TimeoutError is an OSError
            reason = why_no_route(error, self._connect_timeout_seconds, server.proxy)
            self._fail_next(
                Refusal(
                    code=502,
                    message=f"{self._name} cannot reach the apiserver at {server}: {reason}",
                )
            )
            return
        connection.is_outdated = generation != self._generation
        if not connection.is_open:
            self._fail_next(
                Refusal(code=502, message=f"the apiserver at {server} hung up at once")
            )
            return
        self._connections.add(connection)
        if self._waiting:
            user = self._waiting.popleft()
            connection.user = user
            user.upstream_ready(connection)
        else:
            self.released(connection)

    def _close_idle(self) -> None:
        """Close what has been idle for too long; the oldest are on the left."""
        limit = self._loop.time() - self._idle_seconds
        while self._idle and self._idle[0].idle_since <= limit:
            self._idle.popleft().close()
        self._idle_timer = None
        if self._idle:
            self._idle_timer = self._loop.call_at(
                self._idle[0].idle_since + self._idle_seconds, self._close_idle
            )
