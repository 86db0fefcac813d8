"""Streams to a member, kept warm: each carries one request at a time, inside mutual TLS.

A stream's handshake takes a round trip to the member, so a request should find one that is
done. Each session has a pool; a pool that is used keeps a few streams ready beyond those
in use, and one that is not used lets all go. To an `Exchange` of shared.http a stream is a
connection like one to an apiserver.

Longer than our files are: a stream and its pool look at each other's state.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from functools import partial

from shared.errors import Code, StreamReset
from shared.http.status import Refusal
from shared.http.upstream import UpstreamUser
from shared.member.gateway import GATEWAY_TARGET
from shared.streams import ByteStream, StreamHandler
from shared.tunnel.local import LocalTunnel
from shared.tunnel.tls import TlsEnd
from tower_server.registry import LiveSession

__all__ = [
    "RETRY_AFTER_SECONDS",
    "Identify",
    "MemberStream",
    "SessionStreams",
    "StreamPools",
]

_log = logging.getLogger(__name__)

# Streams that wait for requests, once there has been one: enough for kubectl, which sends
# two or three at a time after its start.
WARM_STREAMS = 3

# A burst of requests may keep this many for the next burst.
MAX_IDLE_STREAMS = 64

# At one session: as many as an agent has connections to its apiserver.
MAX_STREAMS = 4096

# The agent closes a connection after 180 s without a request: we are always the first.
IDLE_SECONDS = 90.0

# So long after its last request a pool still keeps streams ready.
KEEP_WARM_SECONDS = 600.0

# A client that is asked to come again: an agent is back within a second, mostly.
RETRY_AFTER_SECONDS = 1

# Demands that the peer is the session's own agent (ValueError if not).
Identify = Callable[[ssl.SSLObject, LiveSession], None]


class MemberStream:
    """One stream to the member; at most one user at a time. A `shared.http.upstream.Upstream`."""

    def __init__(self, pool: "SessionStreams") -> None:
        self._pool = pool
        # Set when the handshake is done; None again when the stream is over.
        self._plain: ByteStream | None = None
        # Who gets the bytes; None while idle.
        self.user: UpstreamUser | None = None
        # See `Upstream`.
        self.is_reused = False
        self.has_answered = False
        self.writing_is_paused = False
        # When it became idle last.
        self.idle_since = 0.0
        # The user cannot take more: what comes is kept, and the window bounds it.
        self._reading_is_paused = False
        self._held: list[bytes] = []
        # The agent has ended its direction; its user is told behind what is held.
        self._has_ended = False

    @property
    def is_open(self) -> bool:
        """Whether it may be used."""
        return self._plain is not None and not self._has_ended

    def secured(self, plain: ByteStream) -> None:
        """Its handshake is done."""
        self._plain = plain

    # -- its user -----------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._plain is not None:
            self._plain.write(data)

    def half_close(self) -> bool:
        if self._plain is None:
            return False
        self._plain.write_eof()
        return True

    def pause_reading(self) -> None:
        self._reading_is_paused = True

    def resume_reading(self) -> None:
        self._reading_is_paused = False
        while self._held and not self._reading_is_paused:
            self._deliver(self._held.pop(0))
        if self._has_ended and not self._held:
            self._end(None)

    def release(self) -> None:
        self.user = None
        self.is_reused = True
        self.has_answered = False
        self._reading_is_paused = False
        if self._held:
            self.abort()
        else:
            self._pool.released(self)

    def abort(self) -> None:
        self.user = None
        plain, self._plain = self._plain, None
        if plain is not None:
            plain.reset(Code.CANCELLED, "the caller has left")
            self._pool.lost(self)

    def close(self) -> None:
        """It is idle and not needed: end it without a word."""
        self.abort()

    # -- StreamHandler ------------------------------------------------------------------

    def data_received(self, data: bytes | memoryview) -> None:
        data = bytes(data)
        if self._reading_is_paused:
            self._held.append(data)
        else:
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        user, plain = self.user, self._plain
        if plain is None:
            return
        if user is None:
            # Bytes that nobody asked for: the next answer would be the wrong one.
            self.abort()
            return
        plain.taken(len(data))
        self.has_answered = True
        user.upstream_received(data)

    def eof_received(self) -> None:
        self._has_ended = True
        if not self._held:
            self._end(None)

    def stream_closed(self, error: StreamReset | None) -> None:
        self._end(error)

    def _end(self, error: StreamReset | None) -> None:
        plain, self._plain = self._plain, None
        user, self.user = self.user, None
        self._held.clear()
        self._has_ended = True
        if plain is None:
            self._pool.not_secured(self, str(error or "the stream was closed"))
            return
        plain.write_eof()
        self._pool.lost(self)
        if user is not None:
            user.upstream_ended(error)

    def pause_writing(self) -> None:
        self.writing_is_paused = True

    def resume_writing(self) -> None:
        self.writing_is_paused = False
        if self.user is not None:
            self.user.upstream_drained()


class SessionStreams:
    """The streams of one session; `shared.http.upstream.Upstreams` for what goes there."""

    def __init__(self, owner: "StreamPools", session: LiveSession) -> None:
        self._owner = owner
        self._session = session
        # Every stream that is open, used or idle.
        self._streams: set[MemberStream] = set()
        # Those whose handshake is under way.
        self._opening: set[MemberStream] = set()
        # The last one given back is the first one taken: the others may grow old.
        self._idle: deque[MemberStream] = deque()
        # Users without a stream, in order.
        self._waiting: deque[UpstreamUser] = deque()
        # When the last request came.
        self._used_at = 0.0
        # The last attempt to open one failed: none is opened in advance.
        self._is_failing = False
        # Runs while there are idle streams.
        self._idle_timer: asyncio.TimerHandle | None = None

    @property
    def idle_streams(self) -> int:
        return len(self._idle)

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    # -- Upstreams ----------------------------------------------------------------------

    @property
    def base_path(self) -> bytes:
        return b""

    @property
    def far_end(self) -> str:
        return f"the agent of {self._session.cluster}"

    def own_refusal(self, target: bytes) -> str | None:
        return None  # the agent tells by a 502 what is not the caller's

    def take(
        self, user: UpstreamUser, *, is_fresh: bool = False
    ) -> MemberStream | None:
        """A stream for this user, now; or None, and it hears of one later.

        One that was opened in advance and never used is as good as a fresh one.
        """
        self._used_at = self._owner.loop.time()
        stream = self._pop_unused() if is_fresh else self._pop()
        if stream is not None:
            stream.user = user
        else:
            self._waiting.append(user)
            self._open()
        self._keep_warm()
        return stream

    def forget(self, user: UpstreamUser) -> None:
        if user in self._waiting:
            self._waiting.remove(user)

    # -- its streams --------------------------------------------------------------------

    def released(self, stream: MemberStream) -> None:
        """A stream is free; `MemberStream.release` calls this."""
        if not stream.is_open or len(self._idle) >= MAX_IDLE_STREAMS:
            stream.close()
            return
        stream.idle_since = self._owner.loop.time()
        self._idle.append(stream)
        if self._idle_timer is None:
            self._idle_timer = self._owner.loop.call_later(
                IDLE_SECONDS, self._close_idle
            )

    def lost(self, stream: MemberStream) -> None:
        """A stream is over; `MemberStream` calls this."""
        self._streams.discard(stream)
        self._opening.discard(stream)
        if stream in self._idle:
            self._idle.remove(stream)
        self._leave_if_empty()

    # -- inside -------------------------------------------------------------------------

    def _pop(self) -> MemberStream | None:
        while self._idle:
            stream = self._idle.pop()
            if stream.is_open:
                return stream
        return None

    def _pop_unused(self) -> MemberStream | None:
        for stream in self._idle:
            if not stream.is_reused and stream.is_open:
                self._idle.remove(stream)
                return stream
        return None

    def _keep_warm(self) -> None:
        """Open so many streams in advance that the next requests find one."""
        while (
            not self._is_failing
            and self._session.usable
            and len(self._streams) < MAX_STREAMS // 2
            and len(self._idle) + len(self._opening) - len(self._waiting) < WARM_STREAMS
        ):
            if not self._open():
                return

    def _open(self) -> bool:
        """Begin to open a stream; False, and the next user is told so, if that cannot be."""
        if len(self._streams) >= MAX_STREAMS:
            self._fail_later(
                f"there are {MAX_STREAMS} streams to this member, which is the limit"
            )
            return False
        try:
            below = self._session.connection.session.open_stream(GATEWAY_TARGET)
        except StreamReset as error:
            self._fail_later(f"the tunnel takes no stream: {error.reason}")
            return False
        stream = MemberStream(self)
        self._streams.add(stream)
        self._opening.add(stream)
        if isinstance(self._session.connection, LocalTunnel):
            # The other end is in this process: there is nobody to be kept out.
            below.handler = stream
            self._owner.loop.call_soon(self._secured, stream, below)
            return True
        end = TlsEnd(
            self._owner.context,
            server_side=False,
            on_handshake=partial(self._identified, stream),
            call_later=self._owner.loop.call_later,
            on_failed=partial(self.not_secured, stream),
        )
        below.handler = end
        end.start(below)
        return True

    def _identified(
        self, stream: MemberStream, plain: ByteStream, connection: ssl.SSLObject
    ) -> StreamHandler:
        try:
            self._owner.identify(connection, self._session)
        except ValueError as error:
            self.not_secured(stream, f"it is not its agent that answers: {error}")
            raise
        self._secured(stream, plain)
        return stream

    def _secured(self, stream: MemberStream, plain: ByteStream) -> None:
        if stream not in self._opening:
            return  # reset meanwhile
        self._opening.discard(stream)
        self._is_failing = False
        stream.secured(plain)
        if self._waiting:
            user = self._waiting.popleft()
            stream.user = user
            user.upstream_ready(stream)
        else:
            self.released(stream)

    def not_secured(self, stream: MemberStream, reason: str) -> None:
        """A stream has come to nothing before it was used."""
        if stream not in self._opening:
            return
        self._opening.discard(stream)
        self._streams.discard(stream)
        self._is_failing = True
        _log.warning("%s: no gateway stream: %s", self._session.cluster, reason)
        self._fail_next(
            Refusal(
                code=502,
                message=f"the agent of cluster {self._session.cluster} cannot be reached: {reason}",
            )
        )

    def _fail_later(self, reason: str) -> None:
        # Not at once: the user is still inside of its call of `take`.
        refusal = Refusal(
            code=503,
            message=f"cluster {self._session.cluster}: {reason}",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
        self._owner.loop.call_soon(self._fail_next, refusal)

    def _fail_next(self, refusal: Refusal) -> None:
        if len(self._waiting) > len(self._opening):
            self._waiting.popleft().upstream_failed(refusal)
        self._leave_if_empty()

    def _close_idle(self) -> None:
        """Close what has been idle for too long, and replace it while requests come."""
        now = self._owner.loop.time()
        while self._idle and self._idle[0].idle_since <= now - IDLE_SECONDS:
            self._idle[0].close()
        self._idle_timer = None
        if self._idle:
            self._idle_timer = self._owner.loop.call_at(
                self._idle[0].idle_since + IDLE_SECONDS, self._close_idle
            )
        if now - self._used_at < KEEP_WARM_SECONDS:
            self._keep_warm()

    def _leave_if_empty(self) -> None:
        if not self._streams and not self._waiting:
            if self._idle_timer is not None:
                self._idle_timer.cancel()
                self._idle_timer = None
            self._owner.emptied(self._session)


class StreamPools:
    """The pools of all sessions; each is made when the first request goes there."""

    def __init__(
        self,
        context: ssl.SSLContext,
        identify: Identify,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # Of new streams: replaced when the server's certificate is.
        self.context = context
        self.identify = identify
        self.loop = loop
        self._pools: dict[LiveSession, SessionStreams] = {}

    def __len__(self) -> int:
        return len(self._pools)

    def of(self, session: LiveSession) -> SessionStreams:
        pool = self._pools.get(session)
        if pool is None:
            pool = self._pools[session] = SessionStreams(self, session)
        return pool

    def emptied(self, session: LiveSession) -> None:
        """A pool has nothing left; it is forgotten, and made anew when it is wanted."""
        self._pools.pop(session, None)
