"""The one port: looks at the first bytes of each connection and picks its face.

A connection's ClientHello is peeked at, never taken: whoever serves the connection gets
all of it. `<cluster>.<zone>` as server name means the sealed face, whose ciphertext is
relayed to that cluster's agent; every other TLS connection is the server's own HTTPS.

We accept sockets ourselves, because uvloop's transports refuse `recv`, and MSG_PEEK with
a reader callback would spin while a hello is incomplete (kubectl's takes two segments):
SO_RCVLOWAT is raised to what the hello still wants, so that the kernel wakes us only for
news. Nobody is authenticated here, so everything is limited: connections that have not
come to anything yet, the time for a hello, and half-open streams.

Longer than our files are: who is let in, who waits and who is sent away share one count.
"""

import asyncio
import errno
import ipaddress
import logging
import select
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from certs.names import ClusterName
from shared.errors import Code, StreamReset
from shared.mux.session import Session
from shared.mux.stream import Stream
from shared.tunnel.relay import SocketEnd, StreamEnd
from shared.tunnel.tasks import TaskSet
from tower_server.client_hello import (
    DECODE_ERROR_ALERT,
    MAX_CLIENT_HELLO_BYTES,
    UNRECOGNIZED_NAME_ALERT,
    ClientHello,
    Incomplete,
    Malformed,
    NotTls,
    read_client_hello,
)
from tower_server.half_open import HalfOpenPlaces, Place
from tower_server.registry import LiveSession, Registry
from tower_server.turns import Turns

__all__ = ["FrontDoor"]

_log = logging.getLogger(__name__)

# Connections that have come to nothing yet: no hello, or no request on our own HTTPS. Each
# costs a socket and a task, 8 KiB; how many of them may have a TLS state, `turns` decides.
# While there are so many nobody is accepted: whoever comes next waits with the kernel. To
# close them instead would bring each back in a quarter of a second, and so never end.
MAX_WAITING = 4096
# Sealed connections that are held for an agent that is away, beside those: after a restart
# control planes are here before the agents, and must not keep them out.
MAX_HELD = 1024
# Of those from one address, so that one stranger cannot lock all others out. 10,000
# agents behind one NAT need 200 ms each: they are through within a minute.
MAX_WAITING_PER_SOURCE = 256
# A client on a 2,000 ms round trip with one lost packet still makes it.
HELLO_DEADLINE_SECONDS = 5.0
# How long a sealed connection is held while its cluster's agent is away (design 7).
HOLD_SECONDS = 2.0
# An agent ends a handshake after 10 s; later than this it will not answer at all.
HALF_OPEN_SECONDS = 12.0

# How long a connection waits for its turn to shake hands: an agent gives up after that, too.
TURN_SECONDS = 10.0

# New connections that one wake-up of the listening socket takes at most.
_ACCEPT_BATCH = 64
# When there is no room for another socket, so long until the next try.
_ACCEPT_PAUSE_SECONDS = 0.5
_BACKLOG = 1024

# A peer that vanished without a word (a laptop that sleeps) is noticed after two minutes.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}

# accept(2): what Linux passes on of a connection that broke before we took it.
_BROKE_BEFORE = {
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EPROTO,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    getattr(errno, "ENONET", errno.EPROTO),
}

_PLAIN_HTTP_TEXT = b"This port speaks HTTPS; the request was plain HTTP. Use https://\n"
_PLAIN_HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_PLAIN_HTTP_TEXT), _PLAIN_HTTP_TEXT)
)


class FrontDoor:
    """Accepts connections and hands each to its face."""

    def __init__(
        self,
        zone: str,
        registry: Registry,
        serve_own: Callable[[socket.socket], Awaitable[None]],
    ) -> None:
        self._suffix = "." + zone
        self._registry = registry
        # Serves a connection of the server's own HTTPS. Takes over the socket, unless it
        # raises; returns when the connection needs no more of our patience.
        self._serve_own = serve_own
        self._tasks = TaskSet("front door")
        self._listening: socket.socket | None = None
        # Connections whose task runs, by source; and how many of them are held.
        self._waiting: Counter[str] = Counter()
        self._held = 0
        # As many wait as may: the next is accepted when some of them are through.
        self._is_full = False
        self._turns = Turns()
        self._places = HalfOpenPlaces()
        # Streams whose agent has not said ACCEPT: their place, and when they lose it.
        self._half_open: dict[Stream, tuple[Place, asyncio.TimerHandle]] = {}
        # Connections of clients that are being relayed, until their sockets are gone.
        self._relayed: set[_ClientSocket] = set()
        # Set whenever one of them is.
        self._socket_gone = asyncio.Event()
        # Connections by what became of them, for status and metrics.
        self.counts: Counter[str] = Counter()

    # Life

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Bind and begin; returns the address, with the real port for port 0.

        Raises OSError when the address cannot be had.
        """
        everywhere = host == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=_BACKLOG,
            dualstack_ipv6=everywhere,
        )
        listening.setblocking(False)
        # Accepted sockets inherit it.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._listening = listening
        asyncio.get_running_loop().add_reader(listening, self._accept)
        bound = listening.getsockname()
        return bound[0], bound[1]

    async def close(self) -> None:
        """Stop accepting, and drop who still waits. Connections that are being served
        stay with their relays."""
        listening, self._listening = self._listening, None
        if listening is not None:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        await self._tasks.close()

    async def finish(self, seconds: float) -> None:
        """Give clients so many seconds to read what the streams that have ended left for them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._relayed:
                    self._socket_gone.clear()
                    await self._socket_gone.wait()

    def relay_begins(self, client: "_ClientSocket") -> None:
        self._relayed.add(client)

    def relay_is_over(self, client: "_ClientSocket") -> None:
        """Its socket is gone, and with it all that we held of it."""
        self._relayed.discard(client)
        self._socket_gone.set()

    def stream_accepted(self, stream: Stream) -> None:
        """The agent has authenticated the caller, or it is over: its place is free."""
        place, deadline = self._half_open.pop(stream, (None, None))
        if place is not None and deadline is not None:
            deadline.cancel()
            place.leave()

    # Accepting

    def _accept(self) -> None:
        for _ in range(_ACCEPT_BATCH):
            if self._listening is None:
                return
            if self._room <= 0:
                self._is_full = True
                self.counts["full"] += 1
                asyncio.get_running_loop().remove_reader(self._listening)
                return
            try:
                accepted, address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _BROKE_BEFORE:
                    self._pause_accepting(error)
                    return
                continue
            accepted.setblocking(False)
            source = _source(address[0])
            if self._waiting[source] >= MAX_WAITING_PER_SOURCE:
                self.counts["too_many_waiting"] += 1
                accepted.close()
                continue
            self._waiting[source] += 1
            task = self._tasks.start(self._route(accepted, source), "connection")
            # Not a `finally` there: a task that is cancelled at once never begins.
            task.add_done_callback(partial(self._routed, accepted, source))

    def _routed(
        self, accepted: socket.socket, source: str, task: asyncio.Task[bool]
    ) -> None:
        self._waiting[source] -= 1
        if not self._waiting[source]:
            del self._waiting[source]
        if task.cancelled() or task.exception() is not None or not task.result():
            # Does no harm where a failed transport has closed it already.
            accepted.close()
        self._use_room()

    @property
    def _room(self) -> int:
        """How many more connections may wait."""
        return MAX_WAITING - (len(self._tasks) - self._held)

    def _use_room(self) -> None:
        """Accept again, if nobody was for want of room and there is some now."""
        if self._is_full and self._room >= min(_ACCEPT_BATCH, MAX_WAITING):
            self._is_full = False
            self._accept_again()

    def _pause_accepting(self, error: OSError) -> None:
        # The connection stays in the backlog and would wake us again at once.
        full = error.errno in (errno.EMFILE, errno.ENFILE)
        remedy = ". Raise the limit of open files (ulimit -n)." if full else ""
        _log.error("cannot accept connections: %s%s", error, remedy)
        self.counts["accept_failed"] += 1
        loop, listening = asyncio.get_running_loop(), self._listening
        if listening is not None:
            loop.remove_reader(listening)
            loop.call_later(_ACCEPT_PAUSE_SECONDS, self._accept_again)

    def _accept_again(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    # One connection

    async def _route(self, accepted: socket.socket, source: str) -> bool:
        """Find the face; True when it has taken the socket over, else it is to be closed."""
        try:
            async with asyncio.timeout(HELLO_DEADLINE_SECONDS):
                verdict = await _peek_hello(accepted)
        except TimeoutError:
            self.counts["hello_timeout"] += 1
            return False
        except OSError:
            self.counts["no_hello"] += 1
            return False
        try:
            return await self._serve(accepted, source, verdict)
        except OSError as error:  # ssl.SSLError is one
            self.counts["broken"] += 1
            _log.debug("connection from %s: %s", source, error)
            return False

    async def _serve(
        self,
        accepted: socket.socket,
        source: str,
        verdict: ClientHello | NotTls | Malformed,
    ) -> bool:
        if isinstance(verdict, NotTls):
            return self._refuse(accepted, "not_tls", _PLAIN_HTTP_ANSWER)
        if isinstance(verdict, Malformed):
            _log.debug("connection from %s: %s", source, verdict.reason)
            return self._refuse(accepted, "malformed_hello", DECODE_ERROR_ALERT)
        name = verdict.server_name or ""
        if not name.endswith(self._suffix):
            return await self._shake_hands(accepted, source)
        cluster = ClusterName(name.removesuffix(self._suffix))
        if not self._registry.knows(cluster):
            return self._refuse(accepted, "unknown_cluster", UNRECOGNIZED_NAME_ALERT)
        place = self._places.take(source, cluster)
        if place is None:
            self.counts["half_open_limit"] += 1
            return False
        try:
            stream = await self._open(cluster)
        except BaseException:
            place.leave()
            raise
        if stream is None:
            place.leave()
            return False
        await self._relay(accepted, stream, place)
        return True

    async def _shake_hands(self, accepted: socket.socket, source: str) -> bool:
        """Our own HTTPS, when it is this connection's turn."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.begin(source)
        except TimeoutError:
            self.counts["turn_timeout"] += 1
            return False
        try:
            if _has_left(accepted):
                self.counts["left"] += 1
                return False
            await self._serve_own(accepted)
        finally:
            self._turns.end()
        self.counts["own"] += 1
        return True

    def _refuse(self, accepted: socket.socket, outcome: str, answer: bytes) -> bool:
        self.counts[outcome] += 1
        _answer(accepted, answer)
        return False

    async def _open(self, cluster: ClusterName) -> Stream | None:
        session = self._registry.pick(cluster) or await self._hold(cluster)
        if session is None:
            self.counts["agent_away"] += 1
            return None
        try:
            return session.connection.session.open_stream("sealed")
        except StreamReset as error:
            _log.warning("%s: no stream for a connection: %s", cluster, error)
            self.counts["no_stream"] += 1
            return None

    async def _hold(self, cluster: ClusterName) -> LiveSession | None:
        """Wait a little for the agent of a cluster to come back."""
        if self._held >= MAX_HELD:
            return None
        self._held += 1
        self._use_room()
        try:
            return await self._registry.wait_for(cluster, HOLD_SECONDS)
        finally:
            self._held -= 1

    async def _relay(
        self, accepted: socket.socket, stream: Stream, place: Place
    ) -> None:
        stream_end = StreamEnd(stream, partial(self.stream_accepted, stream))
        socket_end = _ClientSocket(stream_end, self)
        stream.handler = stream_end
        loop = asyncio.get_running_loop()
        self._half_open[stream] = (
            place,
            loop.call_later(HALF_OPEN_SECONDS, self._half_open_too_long, stream),
        )
        try:
            await loop.connect_accepted_socket(lambda: socket_end, accepted)
        except BaseException:
            # There may be no transport that would ever end the stream.
            stream.reset(Code.CANCELLED, "the caller's connection broke")
            self.stream_accepted(stream)
            raise
        self.counts["sealed"] += 1

    def session_parked(self, session: Session) -> None:
        """A session waits for its agent: strangers in it are held no longer than new ones."""
        loop = asyncio.get_running_loop()
        for stream in [s for s in self._half_open if s.session is session]:
            loop.call_later(HOLD_SECONDS, self._held_too_long, stream)

    def _held_too_long(self, stream: Stream) -> None:
        if stream in self._half_open and stream.session.detached:
            self.counts["half_open_lost"] += 1
            _end(stream, Code.SESSION_LOST, "the tunnel was lost")

    def _half_open_too_long(self, stream: Stream) -> None:
        self.counts["half_open_timeout"] += 1
        _end(stream, Code.TIMEOUT, "the caller was not authenticated in time")


class _ClientSocket(SocketEnd):
    """The socket of a relay, listed for as long as we hold bytes for it."""

    __slots__ = ("_door",)

    def __init__(self, end: StreamEnd, door: FrontDoor) -> None:
        super().__init__(end)
        self._door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._door.relay_begins(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._door.relay_is_over(self)
        super().connection_lost(error)


def _end(stream: Stream, code: Code, reason: str) -> None:
    """Reset a relayed stream, and its local connection with it."""
    handler = stream.handler
    stream.reset(code, reason)
    if handler is not None:
        handler.stream_closed(StreamReset(code, reason))


async def _peek_hello(accepted: socket.socket) -> ClientHello | NotTls | Malformed:
    """Look at a socket's first bytes until they decide its face; takes none of them."""
    loop = asyncio.get_running_loop()
    seen_bytes = 0
    try:
        while True:
            try:
                seen = accepted.recv(MAX_CLIENT_HELLO_BYTES, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                await _readable(loop, accepted)
                continue
            # Readable without news means EOF behind what we saw.
            if len(seen) == seen_bytes:
                raise ConnectionResetError("closed before the end of its ClientHello")
            verdict = read_client_hello(seen)
            if not isinstance(verdict, Incomplete):
                return verdict
            seen_bytes = len(seen)
            _wake_at(accepted, verdict.wanted_bytes)
            await _readable(loop, accepted)
    finally:
        if accepted.fileno() >= 0:
            _wake_at(accepted, 1)


def _wake_at(accepted: socket.socket, byte_count: int) -> None:
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, byte_count)


async def _readable(loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(accepted, wake)
    try:
        await ready
    finally:
        loop.remove_reader(accepted)


def _has_left(accepted: socket.socket) -> bool:
    """Whether the peer has closed: what it sent before that still lies in front of its FIN."""
    if not hasattr(select, "POLLRDHUP"):  # Linux has it
        return False
    poll = select.poll()
    poll.register(accepted, select.POLLRDHUP)
    return bool(poll.poll(0))


def _answer(accepted: socket.socket, answer: bytes) -> None:
    """Send a last word if the kernel takes it at once. Unread input would turn the close
    that follows into a reset that overtakes it, so what is there is read first."""
    with suppress(OSError):
        accepted.recv(MAX_CLIENT_HELLO_BYTES)
        accepted.send(answer)


def _source(address: str) -> str:
    """Whom an address counts for: an IPv6 customer has at least a /64 to himself."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
