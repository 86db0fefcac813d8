"""The host's real front door, own HTTPS, listener and registry, wired on loopback with a memory store.

`HostSide` is the server without its process: tests look into every part, and issue agents
their credentials without a join. It fails a test that leaves anything open: sockets,
sessions, half-open places, tasks.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from aiohttp import web

from certs.assertion import AssertionVerifier, assertion_audience
from certs.authority import Authority
from certs.chains import pem
from certs.contexts import OuterMode, inner_client, own_https
from certs.joining import new_token, verifier_of
from certs.keys import certificate_request, new_key, private_pem, spki_pin
from certs.names import ClusterName, parse_cluster_name
from shared.errors import Code, StreamReset
from shared.mux.budget import WindowBudget
from shared.mux.stream import Stream
from shared.streams import ByteStream
from shared.tunnel.connection import TunnelConnection
from tests.fakes.tunnel_pair import LOOPBACK, Owner
from tower_agent.credentials import Credentials
from tower_agent.dialer import Dialer
from tower_server.control import identify_agent
from tower_server.front_door import FrontDoor
from tower_server.gateway.face import GatewayFace
from tower_server.gateway.streams import StreamPools
from tower_server.listener import TunnelListener
from tower_server.own_https import OwnHttps, close_after_answer
from tower_server.parking import Parking
from tower_server.registry import LiveSession, Registry
from tower_server.stores import Store, TokenId, TokenRecord, TokenUse
from tower_server.stores.memory import MemoryStore

__all__ = ["ZONE", "AgentSide", "HostSide", "Sink", "open_sockets", "until"]

ZONE = "clusters.tower.internal"


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Let the loop run until the condition holds; fails when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def open_sockets() -> int:
    """Not of all files: uvloop opens some for itself when it first needs them."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


class Sink:
    """A stream's handler that keeps what comes, and takes it, unless told to stall."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.received = b""
        self.has_eof = False
        # The end: None for a good one. Empty while it goes on.
        self.ends: list[StreamReset | None] = []
        stream.handler = self  # type: ignore[attr-defined]

    def data_received(self, data: bytes | memoryview) -> None:
        self.received += data
        self.stream.taken(len(data))

    def eof_received(self) -> None:
        self.has_eof = True

    def stream_closed(self, error: StreamReset | None) -> None:
        self.ends.append(error)

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


class HostSide:
    """An asynchronous context: the host's side of Tower on a loopback port."""

    def __init__(
        self, store: Store | None = None, *, resume_seconds: float = 0.0
    ) -> None:
        self.store: Store = store or MemoryStore()
        self.registry = Registry()
        self.port = 0
        # Control streams that agents opened, with their session; nothing else is done.
        self.controls: list[tuple[LiveSession, Sink]] = []
        # Agents' ends of what `dial` made.
        self.tunnels: list[TunnelConnection] = []
        # Held for requests to /slow of our own HTTPS.
        self.may_answer = asyncio.Event()
        self._sockets_before = open_sockets()
        self._directory = tempfile.TemporaryDirectory()
        # As certs wants it; the temporary directory itself is 0700.
        self.authority = Authority.open_or_create(
            Path(self._directory.name), ZONE, datetime.now(UTC)
        )
        self.parking = Parking(resume_seconds)
        # Memory for windows, of the server's sessions.
        self.budget = WindowBudget()
        self.listener = TunnelListener(
            AssertionVerifier([self.authority.certificate], ZONE),
            self.store,
            self.registry,
            lambda stream: self.door.stream_accepted(stream),
            lambda session, stream: self.controls.append((session, Sink(stream))),
            self.parking,
            lambda session: self.door.session_parked(session),
            self.budget,
        )
        key = new_key()
        now = datetime.now(UTC)
        certificate = self.authority.issue_server(key.public_key(), [LOOPBACK], now)
        loop = asyncio.get_running_loop()
        self.gateway = GatewayFace(
            zone=ZONE,
            registry=self.registry,
            pools=StreamPools(
                inner_client(pem(certificate), private_pem(key), self.authority.pem),
                lambda tls, session: identify_agent(tls, session, ZONE),
                loop,
            ),
            loop=loop,
            now=lambda: datetime.now(UTC),
        )
        self.own = OwnHttps(
            own_https(pem(certificate), private_pem(key), self.authority.pem),
            lambda: self._web.server(),
            self.listener.protocol,
            self.gateway.protocol,
        )
        self.door = FrontDoor(ZONE, self.registry, self.own.serve)

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.on_response_prepare.append(close_after_answer)
        application.router.add_route("*", "/slow", self._slow)
        application.router.add_get("/healthz", self._healthz)
        self._web = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._web.setup()
        _, self.port = self.door.listen(LOOPBACK, 0)
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self.door.close()
        await self.listener.close("the test is over", 5.0)
        for tunnel in self.tunnels:
            tunnel.abort("the test is over")
        self.own.close()
        self.gateway.close("the test is over")
        await self._web.cleanup()
        self._directory.cleanup()
        if kind is None:
            await self._check_nothing_is_left()

    async def _check_nothing_is_left(self) -> None:
        # Transports close their sockets in a later turn of the loop.
        await until(lambda: not self.own.connections and not self.own.web_connections)
        await until(lambda: not self.door._half_open)
        assert not self.door._places.by_source and not self.door._places.by_cluster
        assert not self.door._waiting
        await until(lambda: all(tunnel.closed for tunnel in self.tunnels))
        assert not self.listener._live and not self.listener._arriving
        assert not list(self.registry.sessions())
        before = self._sockets_before
        try:
            await until(lambda: open_sockets() <= before)
        except TimeoutError:
            raise AssertionError(
                f"{open_sockets() - before} sockets are left open"
            ) from None

    async def _slow(self, request: web.Request) -> web.Response:
        await self.may_answer.wait()
        return web.Response(text="at last\n")

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    # What an admin and a member do

    async def join(
        self, name: str = "alpha", outer_mode: OuterMode = "tower"
    ) -> Credentials:
        """A cluster's (next) join, without its network part. The registry is not told."""
        cluster, now, key = parse_cluster_name(name), datetime.now(UTC), new_key()
        certificate = self.authority.issue_agent(certificate_request(key), cluster, now)
        token_id, secret = new_token()
        token = TokenRecord(
            id=TokenId(token_id),
            cluster=cluster,
            verifier=verifier_of(secret),
            created_at=now,
            expires_at=now + timedelta(hours=1),
        )
        await self.store.add_token(token, now)
        use = TokenUse(
            token_id=token.id,
            cluster=cluster,
            member_uid=f"uid of {name}",
            agent_version="0.1.0",
            key_pin=spki_pin(key.public_key()),
            serial=certificate.serial_number,
            certificate=pem(certificate),
            at=now,
        )
        await self.store.use_token(use)
        return Credentials(
            cluster=cluster,
            zone=ZONE,
            audience=assertion_audience(ZONE),
            server_host=LOOPBACK,
            server_port=self.port,
            pin=self.authority.pin,
            token_id=token_id,
            ca_pem=self.authority.pem,
            certificate_pem=pem(certificate),
            key_pem=private_pem(key),
            outer_mode=outer_mode,
        )

    async def dial(self, credentials: Credentials, owner: Owner) -> TunnelConnection:
        """An agent's tunnel; the registry knows its session when this returns."""
        tunnel = await Dialer(credentials, owner, environ={}).dial()
        self.tunnels.append(tunnel)
        await tunnel.ready
        await until(lambda: self.registry.pick(credentials.cluster) is not None)
        return tunnel

    async def connected_agent(self, name: str = "alpha") -> "AgentSide":
        """A cluster that has joined and is connected; its streams go to Sinks."""
        agent = AgentSide(await self.join(name))
        agent.tunnel = await self.dial(agent.credentials, agent.owner)
        return agent

    async def remove(self, name: str) -> None:
        """As the admin API does it."""
        cluster = ClusterName(name)
        await self.store.remove_cluster(cluster, datetime.now(UTC))
        await self.registry.cut(cluster, Code.REVOKED, "an admin removed the cluster")
        self.registry.forget(cluster)


class AgentSide:
    """An agent whose streams end in Sinks: it never says ACCEPT by itself."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self.owner = Owner()
        self.owner.on_stream = self._stream_opened
        self.tunnel: TunnelConnection
        # Of every stream that was opened to it, in order.
        self.sinks: list[Sink] = []

    def _stream_opened(self, stream: Stream) -> None:
        self.sinks.append(Sink(stream))
