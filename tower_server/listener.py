"""Takes the calls of agents: the WebSocket upgrade, who is calling, and what streams they open.

An agent proves who it is by a signed, single-use assertion in the upgrade, so that this
works behind anything that ends TLS (design 3). Only then is there a session. Refusals are
JSON with `error` and `message`, one sentence that the agent shows to its operator.

Longer than our files are: the decision over an upgrade and what becomes of it, through
loss and return, are one story.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import cast

from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.protocol import Protocol, Side
from websockets.server import ServerProtocol

from certs.assertion import AgentIdentity, AssertionVerifier, BadAssertion
from certs.names import ClusterName
from shared.errors import Code
from shared.mux.budget import WindowBudget
from shared.mux.session import Role, Session
from shared.mux.stream import Stream
from shared.mux.windows import INITIAL_WINDOW_BYTES
from shared.tunnel.connection import TunnelConnection
from shared.tunnel.drain import drain_tunnels
from shared.tunnel.owner import Tunnel
from shared.tunnel.tasks import TaskSet
from shared.version import VERSION
from shared.wire.frames import MAX_MESSAGE_BYTES, GoAway, printable
from shared.wire.hello import VERSIONS, Hello, subprotocol
from tower_server.admission import Admission
from tower_server.membership import Refusal, agent_is_current
from tower_server.parking import Parking
from tower_server.registry import CONTROL_TARGET, LiveSession, Registry
from tower_server.stores import Store, StoreUnavailable

__all__ = ["TunnelListener", "UpgradeRefused"]

_log = logging.getLogger(__name__)

# How soon an agent may try again when the store cannot be asked now.
RETRY_AFTER_SECONDS = 2
# ... and when we stop: whoever is next may serve already.
STOPPING_RETRY_SECONDS = 1
# The same refusal is logged as a warning again only after so many seconds.
REFUSAL_LOG_SECONDS = 1.0
# An agent needs one control stream; a second while it replaces a broken one.
MAX_CONTROL_STREAMS = 2
# Of what a stranger's header says and our sentence repeats.
MAX_QUOTED_CHARS = 100


class UpgradeRefused(Exception):
    """An agent is not let in; the sentence is for its operator."""

    def __init__(
        self, status: int, code: str, sentence: str, retry_after: int | None = None
    ) -> None:
        super().__init__(status, code, sentence)
        self.status = status
        self.code = code
        self.sentence = sentence
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.sentence

    def response(self) -> Response:
        body = json.dumps({"error": self.code, "message": self.sentence}).encode()
        headers = Headers(
            {
                "Date": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"),
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "Connection": "close",
            }
        )
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return Response(self.status, self.code, headers, body)


def _going_away() -> UpgradeRefused:
    return UpgradeRefused(
        503, "going_away", "The server is stopping.", STOPPING_RETRY_SECONDS
    )


class TunnelListener:
    """Lets agents in and keeps the registry true about them; owner of their connections."""

    def __init__(
        self,
        verifier: AssertionVerifier,
        store: Store,
        registry: Registry,
        stream_accepted: Callable[[Stream], None],
        open_control: Callable[[LiveSession, Stream], None],
        parking: Parking,
        session_parked: Callable[[Session], None],
        budget: WindowBudget | None = None,
    ) -> None:
        # Memory for windows, of all tunnels together.
        self._budget = budget
        self._parking = parking
        # The front door's: streams of strangers do not wait for an agent.
        self._session_parked = session_parked
        # Connections that go on with a session, until their HELLO is answered.
        self._resuming: dict[TunnelConnection, LiveSession] = {}
        self._verifier = verifier
        self._store = store
        self._registry = registry
        # The front door's: an agent has authenticated a caller.
        self._stream_accepted = stream_accepted
        # Takes over a control stream that an agent opened.
        self._open_control = open_control
        self._tasks = TaskSet("listener")
        # Connections whose session is up.
        self._live: dict[Tunnel, LiveSession] = {}
        # Connections whose HELLO is not here yet, with who they are.
        self._arriving: dict[TunnelConnection, AgentIdentity] = {}
        self._admission = Admission(asyncio.get_running_loop().time())
        # Calls by what became of them, for metrics: `admitted`, or the code of the refusal.
        self.counts: Counter[str] = Counter()
        # Set by drain and close: nobody is let in any more.
        self._draining = False
        # Until when refusals with a code were logged enough; there are few codes.
        self._log_again_at: dict[str, float] = {}
        # Set by close: fires when the last connection is gone.
        self._emptied: asyncio.Event | None = None

    def protocol(self) -> asyncio.Protocol:
        """A protocol for one connection whose first request is for /tunnel."""
        return _Upgrade(self)

    @property
    def is_draining(self) -> bool:
        return self._draining

    async def drain(self, reason: str, seconds: float) -> None:
        """Say GOAWAY on every tunnel, and let its streams end within so many seconds; those
        that have not are reset. `close` follows. New agents are refused from now on.

        Agents dial again at once, and keep the old tunnel until its streams are over.
        """
        await self._refuse_agents(reason)
        cut_off = await drain_tunnels(lambda: self._live, reason, seconds)
        if cut_off:
            _log.warning("%d streams were cut off after %g s", cut_off, seconds)

    async def _refuse_agents(self, reason: str) -> None:
        self._draining = True
        # Nobody can come back for them: what waits for that learns it now.
        self._parking.end(lambda _: True, Code.GOING_AWAY, reason)
        for connection in list(self._arriving):
            connection.close(Code.GOING_AWAY, reason)
        await self._tasks.close()

    async def close(self, reason: str, timeout_seconds: float) -> None:
        """Close every tunnel with all its streams, and wait a while until all are gone.

        Those that are not gone by then are dropped.
        """
        await self._refuse_agents(reason)
        for connection in list(self._live):
            connection.close(Code.GOING_AWAY, reason)
        if self._live or self._arriving:
            self._emptied = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._emptied.wait()
            for connection in [*self._live, *self._arriving]:
                connection.abort(reason)

    def end_replaced(self, cluster: ClusterName, key_pin: str) -> None:
        """A cluster has joined (again): tunnels with an earlier key end (design 3)."""
        reason = "this cluster has joined again with another key"
        callers = [
            *((connection, who) for connection, who in self._arriving.items()),
            *((connection, live.identity) for connection, live in self._live.items()),
        ]
        for connection, identity in callers:
            if identity.cluster == cluster and identity.public_key_pin != key_pin:
                connection.close(Code.REVOKED, reason)
        self._parking.end(
            lambda live: (
                live.cluster == cluster and live.identity.public_key_pin != key_pin
            ),
            Code.REVOKED,
            reason,
        )

    def end_parked(self, cluster: ClusterName, code: Code, reason: str) -> None:
        """End a cluster's sessions that wait for their agent."""
        self._parking.end(lambda live: live.cluster == cluster, code, reason)

    # Upgrades

    def upgrade(self, waiting: "_Upgrade", request: Request) -> None:
        if self._draining:
            self.counts["going_away"] += 1
            waiting.refuse(_going_away().response())
        else:
            self._tasks.start(self._decide(waiting, request), "upgrade")

    async def _decide(self, waiting: "_Upgrade", request: Request) -> None:
        refusal: UpgradeRefused | None = None
        try:
            identity = await self._admit(request)
        except UpgradeRefused as error:
            refusal = error
        except asyncio.CancelledError:
            waiting.refuse(_going_away().response())
            raise
        except Exception:
            waiting.refuse(UpgradeRefused(500, "internal", "See the log.").response())
            raise
        if refusal is None:
            refusal = waiting.accept(request, identity)
        self.counts["admitted" if refusal is None else refusal.code] += 1
        if refusal is not None:
            self._log_refusal(refusal, waiting.peer)
            waiting.refuse(refusal.response())

    def _log_refusal(self, refusal: UpgradeRefused, peer: str) -> None:
        # Strangers can be refused as often as they like, and the log is not theirs to fill.
        now = asyncio.get_running_loop().time()
        is_due = now >= self._log_again_at.get(refusal.code, now)
        if is_due:
            self._log_again_at[refusal.code] = now + REFUSAL_LOG_SECONDS
        _log.log(
            logging.WARNING if is_due else logging.DEBUG,
            "tunnel from %s refused (%s): %s",
            peer,
            refusal.code,
            refusal,
        )

    async def _admit(self, request: Request) -> AgentIdentity:
        _check_versions(request)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UpgradeRefused(
                401,
                "no_assertion",
                "The upgrade carries no assertion: a proxy on the way may have removed "
                "the Authorization header.",
            )
        try:
            identity = self._verifier.verify(token.strip(), datetime.now(UTC))
        except BadAssertion as error:
            raise UpgradeRefused(401, "bad_assertion", str(error)) from None
        # Only now: else strangers would take the places of agents, at no cost of their own.
        wait = self._admission.wait_seconds(asyncio.get_running_loop().time())
        if wait:
            raise UpgradeRefused(
                503,
                "busy",
                f"Many agents come back at this moment: this one is asked to in {wait} s.",
                wait,
            )
        await self._check_known(identity)
        return identity

    async def _check_known(self, identity: AgentIdentity) -> None:
        try:
            cluster = await self._store.get_cluster(identity.cluster)
        except StoreUnavailable as error:
            # What is wrong with our disk is for our log; the agent only has to wait.
            _log.error("cannot look up cluster %s: %s", identity.cluster, error)
            raise UpgradeRefused(
                503,
                "store_unavailable",
                "The server cannot look up its clusters at the moment; its log says why.",
                RETRY_AFTER_SECONDS,
            ) from error
        if cluster is None:
            raise UpgradeRefused(
                403,
                Refusal.CLUSTER_REMOVED,
                f"Cluster {identity.cluster} is not known here (removed?): make a new token with "
                f"`tower token create {identity.cluster}` and start the agent with it.",
            )
        self._registry.know(cluster.name, cluster.member_uid)
        if not agent_is_current(cluster, key_pin=identity.public_key_pin):
            raise UpgradeRefused(
                403,
                Refusal.CERTIFICATE_REPLACED,
                f"Cluster {identity.cluster} has joined again since, and this agent's certificate "
                "is no longer good: stop this agent, or join it with a new token.",
            )

    # From _Upgrade

    def connected(
        self,
        identity: AgentIdentity,
        websocket: Protocol,
        transport: asyncio.Transport,
    ) -> None:
        hello = Hello(
            session_id="",  # the agent's, once it said HELLO
            window_bytes=INITIAL_WINDOW_BYTES,
            software=f"tower-server/{VERSION}",
            resume_seconds=int(self._parking.resume_seconds),
        )
        connection = TunnelConnection(
            Role.SERVER,
            websocket,
            hello,
            self,
            find_session=lambda asked: self._find_session(connection, asked),
            keeps_sessions=self._parking.resume_seconds > 0,
            budget=self._budget,
        )
        self._arriving[connection] = identity
        connection.start(transport)

    def _find_session(
        self, connection: TunnelConnection, asked: Hello
    ) -> Session | None:
        """The session that an agent wants to go on with, if it is that agent's own."""
        identity = self._arriving[connection]
        older = self._registry.session_of(identity, asked.session_id)
        if older is not None and older.connection.session.may_go_on:
            # The agent has noticed the loss before us: take it off the dead connection.
            older.connection.session.replay.check_resume(asked.received)
            del self._live[older.connection]
            self._registry.remove(older)
            self._resuming[connection] = older
            return older.connection.release("its agent came back on another connection")
        parked = self._parking.take(asked.session_id, identity, asked.received)
        if parked is None:
            return None
        self._resuming[connection] = parked.live
        return parked.session

    # shared.tunnel.connection.TunnelOwner

    def tunnel_ready(self, connection: TunnelConnection, hello: Hello) -> None:
        identity = self._arriving.pop(connection)
        session = self._resuming.pop(connection, None)
        if session is None:
            session = LiveSession(identity, connection, hello)
            self._end_predecessors(session)
        else:
            session.go_on(connection)
        self._live[connection] = session
        if self._registry.add(session):
            what = "session resumed" if hello.resume else "agent connected"
            _log.info("%s: %s (%s)", identity.cluster, what, hello.software)
        else:
            connection.close(Code.REVOKED, "the cluster was removed")

    def _end_predecessors(self, session: LiveSession) -> None:
        """A process that begins anew in a place has forgotten that place's sessions.

        Those that are parked end now, and so do those that we still believe in; unless they
        are of the same process (its other tunnels), or of one that drains.
        """
        if not session.place:
            return
        reason = "the agent was restarted"
        self._parking.end(
            lambda other: (
                session.is_of_place(other) and not session.is_sibling_of(other)
            ),
            Code.SESSION_LOST,
            reason,
        )
        for other in self._registry.sessions_of(session.cluster):
            is_gone = session.is_of_place(other) and not session.is_sibling_of(other)
            if is_gone and not other.connection.session.peer_draining:
                other.connection.close(Code.SESSION_LOST, reason)

    def stream_opened(self, connection: TunnelConnection, stream: Stream) -> None:
        session = self._live.get(connection)
        if stream.target != CONTROL_TARGET or session is None:
            stream.reset(Code.REFUSED, "the server has no such target")
        elif session.control_streams > MAX_CONTROL_STREAMS:
            stream.reset(Code.LIMIT, "this tunnel has enough control streams")
        else:
            self._open_control(session, stream)

    def stream_accepted(self, connection: TunnelConnection, stream: Stream) -> None:
        self._stream_accepted(stream)

    def going_away(self, connection: TunnelConnection, notice: GoAway) -> None:
        session = self._live.get(connection)
        if session is not None:
            self._registry.left(session)
            _log.info("%s: agent goes away: %s", session.cluster, notice.reason)

    def tunnel_lost(self, connection: TunnelConnection, reason: str) -> None:
        self._arriving.pop(connection, None)
        self._resuming.pop(connection, None)
        session = self._live.pop(connection, None)
        if session is not None:
            self._registry.remove(session)
            _log.info("%s: tunnel ended: %s", session.cluster, reason)
            if connection.session.detached:
                self._keep(session, connection.session)
        if self._emptied is not None and not self._live and not self._arriving:
            self._emptied.set()

    def _keep(self, live: LiveSession, session: Session) -> None:
        if self._draining or not self._registry.knows(live.cluster):
            session.close(Code.SESSION_LOST, "the tunnel was lost")
        else:
            self._parking.park(live, session)
            self._session_parked(session)


def _check_versions(request: Request) -> None:
    offered = {
        name.strip()
        for header in request.headers.get_all("Sec-WebSocket-Protocol")
        for name in header.split(",")
    }
    ours = [subprotocol(version) for version in VERSIONS]
    if not offered.intersection(ours):
        theirs = printable(", ".join(sorted(offered)))[:MAX_QUOTED_CHARS]
        raise UpgradeRefused(
            400,
            "version",
            f"This server (tower-server {VERSION}) speaks {', '.join(ours)}, the agent "
            f"{theirs or 'none of them'}: upgrade the older of the two.",
        )


class _Upgrade(asyncio.Protocol):
    """One connection between its first request and its session."""

    def __init__(self, listener: TunnelListener) -> None:
        self._listener = listener
        self._websocket = ServerProtocol(
            subprotocols=[subprotocol(v) for v in VERSIONS],  # type: ignore[misc]
            max_size=MAX_MESSAGE_BYTES,
        )
        # None before the connection is made, and again when it is lost.
        self._transport: asyncio.Transport | None = None
        # Who calls, for the log.
        self.peer = "?"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass, only the same.
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else "?"

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        # The whole head is in the first call: whoever made us has waited for it.
        self._websocket.receive_data(data)
        event = next(iter(self._websocket.events_received()), None)
        # Nothing more is read until it is decided who this is, or the connection closes.
        self._transport.pause_reading()
        if isinstance(event, Request):
            self._listener.upgrade(self, event)
        else:
            self.refuse(
                UpgradeRefused(
                    400, "bad_request", "The request is no WebSocket upgrade."
                ).response()
            )

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def accept(
        self, request: Request, identity: AgentIdentity
    ) -> UpgradeRefused | None:
        """Answer 101 and start the session, or say why that cannot be."""
        transport = self._transport
        if transport is None:
            return None
        response = self._websocket.accept(request)
        if response.status_code != 101:
            # Not an upgrade at all: something on the way has removed its headers.
            return UpgradeRefused(
                426,
                "upgrade_required",
                "This is the tunnel's address; it wants a WebSocket upgrade: a proxy on the "
                "way may not let WebSockets through.",
            )
        self._websocket.send_response(response)
        for data in self._websocket.data_to_send():
            transport.write(data)
        # A fresh one for what follows: that of the handshake keeps the request, whose
        # assertion alone is 1.5 KiB, for as long as it lives.
        websocket = Protocol(Side.SERVER, max_size=MAX_MESSAGE_BYTES)
        self._listener.connected(identity, websocket, transport)
        transport.resume_reading()
        return None

    def refuse(self, response: Response) -> None:
        """Answer, and close."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(response.serialize())
            self._transport.close()
