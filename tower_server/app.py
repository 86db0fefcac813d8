"""Wires the server: builds every part, gives each what it needs, runs until cancelled.

front door ─┬─ sealed ──▶ registry ──▶ session of the cluster (its agent's, or a direct one)
            └─ own HTTPS ─┬─ /tunnel ──▶ listener
                          ├─ /clusters/… ──▶ gateway ──▶ registry
                          └─ the rest ──▶ aiohttp (join, health)
admin socket ──▶ admin API          raw entries ──▶ registry

Longer than our files are: every part of the program is made here, and nowhere else.
"""

import asyncio
import logging
import os
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiohttp import web

from certs.assertion import AssertionVerifier
from certs.contexts import inner_client, inner_server, own_https
from certs.names import ClusterName
from shared.errors import Code, StreamReset
from shared.metrics import Metric
from shared.mux.budget import WindowBudget
from shared.mux.readings import read_memory
from shared.mux.stream import Stream
from shared.program import ProgramFailed
from shared.settings import HostPort
from shared.streams import ByteStream
from shared.tunnel.tasks import TaskSet
from shared.tunnel.tls import TlsEnd
from tower_server import endpoints
from tower_server.admin import AdminApi
from tower_server.admin_socket import serve_on_socket
from tower_server.answers import AnswerSigner
from tower_server.control import ControlEnd, identify_agent
from tower_server.direct import DirectConnections
from tower_server.entry import RawEntry
from tower_server.front_door import FrontDoor
from tower_server.gateway.face import GatewayFace
from tower_server.gateway.streams import StreamPools
from tower_server.gateway.token_file import BadTokenFile, TokenFile
from tower_server.identity import ServerIdentity
from tower_server.join import JoinService
from tower_server.listener import TunnelListener
from tower_server.metrics import serve_metrics, server_metrics
from tower_server.own_https import OwnHttps, close_after_answer
from tower_server.parking import Parking
from tower_server.registry import LiveSession, Registry
from tower_server.renewal import RenewalService
from tower_server.settings import ServeSettings
from tower_server.state import State, open_state
from tower_server.stores import StoreUnavailable

if TYPE_CHECKING:
    from tower_server.controllers.clusters import ClusterController

__all__ = ["serve"]

_log = logging.getLogger(__name__)

# For the last words to agents, and for requests that are being answered, when we stop.
STOP_SECONDS = 2.0
# How often the server's certificate is looked at; it is due 30 days before its end.
RENEWAL_CHECK_SECONDS = 3600.0


async def serve(settings: ServeSettings) -> None:
    """Run the server until cancelled.

    Prints what it listens on, one line each, the `ready` line last.

    Raises:
        ProgramFailed: If the state directory or an address cannot be used.
        StoreUnavailable: If the store cannot.
    """
    # The inner one closes when we are to stop, before the tunnels drain: what would keep our
    # successor from starting at the same place.
    async with AsyncExitStack() as stack, AsyncExitStack() as entrances:
        state = await open_state(settings, stack, entrances)
        try:
            identity = await state.identity(_host_names(settings), datetime.now(UTC))
        except (ValueError, OSError) as error:
            raise ProgramFailed(f"The server cannot start: {error}.") from error
        await _Server(settings, state, identity).run(stack, entrances)


def _host_names(settings: ServeSettings) -> list[str]:
    names = {settings.public_address_at(0).host}
    if not settings.listen.is_wildcard:
        names.add(settings.listen.host)
    return sorted(names)


class _Server:
    """The parts of one server process."""

    def __init__(
        self, settings: ServeSettings, state: State, identity: ServerIdentity
    ) -> None:
        self._settings = settings
        self._state = state
        # Where the state is kept in the host cluster, from the moment that we listen on.
        self._controller: ClusterController | None = None
        self._authority = authority = state.authority
        self._store = store = state.store
        self._registry = Registry()
        self._tasks = TaskSet("server")
        # Memory for windows, of all clusters' tunnels together.
        self._budget = WindowBudget(settings.window_memory_bytes)
        # Replaced together by _renew: our identity, and the context of control streams.
        self._identity = identity
        self._control_context = self._inner_context()
        self._signer = AnswerSigner(authority, identity.key, identity.certificate)
        self._join = JoinService(
            authority=authority,
            store=store,
            signer=self._signer,
            on_joined=self._joined,
        )
        self._renewal = RenewalService(
            authority=authority,
            store=store,
            on_renewed=self._registry.renewed,
            signer=self._signer,
        )
        self._parking = Parking(settings.resume_time.total_seconds())
        self._listener = TunnelListener(
            AssertionVerifier([authority.certificate], authority.zone),
            store,
            self._registry,
            lambda stream: self._door.stream_accepted(stream),
            self._open_control,
            self._parking,
            lambda session: self._door.session_parked(session),
            self._budget,
        )
        self._direct = DirectConnections(
            self._registry,
            authority,
            lambda stream: self._door.stream_accepted(stream),
            clock=lambda: datetime.now(UTC),
            # In a directory only who may use the admin socket puts kubeconfigs. In a Secret
            # others can, who shall not have our files sent to an address of their choice.
            may_name_files=state.host is None,
            budget=self._budget,
        )
        self._registry.when_cut(self._listener.end_parked)
        self._registry.when_cut(self._direct.end)
        application = web.Application()
        application.on_response_prepare.append(close_after_answer)
        endpoints.add_routes(application, self._join, self._renewal)
        self._web = web.AppRunner(
            application, access_log=None, shutdown_timeout=STOP_SECONDS
        )
        self._gateway = self._make_gateway()
        self._own = OwnHttps(
            self._outer_context(),
            self._make_web,
            self._listener.protocol,
            self._gateway.protocol,
        )
        self._door = FrontDoor(authority.zone, self._registry, self._own.serve)

    async def run(self, stack: AsyncExitStack, entrances: AsyncExitStack) -> None:
        """Serve until cancelled. What is opened here, the stacks close, in reverse: first
        the entrances, so that nobody comes who would be turned away; then running streams
        get their time; then the rest."""
        for record in await self._store.list_clusters():
            self._registry.know(record.name, record.member_uid)
        await self._web.setup()
        stack.push_async_callback(self._web.cleanup)
        stack.callback(self._own.close)
        stack.callback(self._gateway.close, "the server stops")
        stack.push_async_callback(
            self._listener.close, "the server stops", STOP_SECONDS
        )
        self._direct.apply_all(await self._store.list_direct())
        stack.push_async_callback(self._direct.close, "the server stops")
        metrics = await self._open_metrics(stack)
        stack.push_async_callback(self._close_controller)
        stack.push_async_callback(self._drain)
        bound = self._listen(entrances)
        public = self._settings.public_address_at(bound.port)
        await self._serve_admin(entrances, public)
        await self._open_entries(entrances)
        if metrics is not None:
            print(f"metrics at http://{metrics}/metrics", flush=True)
        self._start_controller(bound, public)
        self._tasks.start(self._keep_renewed(), "renewal")
        entrances.push_async_callback(self._tasks.close)
        print(f"tower-server ready on {bound}", flush=True)
        _log.info("ready on %s, public address %s", bound, public)
        await asyncio.Event().wait()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        seconds = self._settings.drain_time.total_seconds()
        deadline = loop.time() + seconds
        await asyncio.gather(
            self._listener.drain("the server stops", seconds),
            self._direct.drain("the server stops", seconds),
        )
        await self._door.finish(max(0.0, deadline - loop.time()))

    # Faces

    def _listen(self, stack: AsyncExitStack) -> HostPort:
        address = self._settings.listen
        try:
            host, port = self._door.listen(address.host, address.port)
        except OSError as error:
            raise _cannot_listen("--listen", address, error) from error
        # Before the tunnels end: their agents shall not come back to us.
        stack.push_async_callback(self._door.close)
        return HostPort(host=host, port=port)

    async def _open_entries(self, stack: AsyncExitStack) -> None:
        for entry in self._settings.tcp_entries:
            raw = RawEntry(entry, self._registry)
            try:
                host, port = await raw.listen()
            except OSError as error:
                raise _cannot_listen("--tcp-entry", entry.listen, error) from error
            stack.push_async_callback(raw.close)
            at = HostPort(host=host, port=port)
            print(f"tcp entry {at} -> {entry.cluster}/{entry.target}", flush=True)

    async def _open_metrics(self, stack: AsyncExitStack) -> HostPort | None:
        address = self._settings.metrics
        if address is None:
            return None
        try:
            return await stack.enter_async_context(
                serve_metrics(address, self._metrics, self._not_ready)
            )
        except OSError as error:
            raise _cannot_listen("--metrics", address, error) from error

    def _not_ready(self) -> str | None:
        return "draining: the server stops" if self._listener.is_draining else None

    def _metrics(self) -> Iterable[Metric]:
        return server_metrics(
            self._registry.readings(),
            read_memory(self._budget),
            self._parking.read(),
            # Copies: this is read in a thread.
            upgrades=dict(self._listener.counts),
            joins=dict(self._join.outcomes),
            front_door=dict(self._door.counts),
            direct_answers=self._direct.answers(),
            is_draining=self._listener.is_draining,
        )

    def _make_web(self) -> asyncio.Protocol:
        server = self._web.server
        assert (
            server is not None
        )  # from setup to cleanup, and no connection outlives that
        return server()

    async def _serve_admin(self, stack: AsyncExitStack, public: HostPort) -> None:
        api = AdminApi(
            store=self._store,
            sessions=self._registry,
            direct=self._direct,
            authority=self._authority,
            public_address=public,
            clock=lambda: datetime.now(UTC),
            memory=lambda: read_memory(self._budget),
        )
        await stack.enter_async_context(
            serve_on_socket(api.application(), self._settings.admin_socket)
        )

    def _start_controller(self, bound: HostPort, public: HostPort) -> None:
        """Let Cluster objects be true, where the state is kept in the host cluster."""
        host = self._state.host
        if host is None:
            return
        from tower_server.controllers.clusters import ClusterController

        self._controller = ClusterController(
            host.client,
            host.store,
            self._registry,
            self._authority,
            connections=self._direct,
            public_address=public,
            # The same after a restart in its place, so that it goes on at once.
            identity=f"{socket.gethostname()}:{bound.port}",
            on_replaced=self._listener.end_replaced,
            clock=lambda: datetime.now(UTC),
        )
        self._tasks.start(self._controller.run(), "controller of the clusters")

    async def _close_controller(self) -> None:
        if self._controller is not None:
            await self._controller.close()

    # Agents

    def _joined(self, cluster: ClusterName, key_pin: str) -> None:
        # From now on its name means something; its UID comes with its first tunnel.
        self._registry.know(cluster, None)
        self._listener.end_replaced(cluster, key_pin)

    def _open_control(self, session: LiveSession, stream: Stream) -> None:
        def secured(plain: ByteStream, connection: ssl.SSLObject) -> ControlEnd:
            try:
                identify_agent(connection, session, self._authority.zone)
            except ValueError as error:
                raise StreamReset(Code.REFUSED, str(error)) from None
            return ControlEnd(session, plain)

        # No gate for handshakes: these callers have proven who they are, and the listener
        # counts the control streams of each. Ten thousand of them may return at once.
        end = TlsEnd(
            self._control_context,
            server_side=True,
            on_handshake=secured,
            call_later=asyncio.get_running_loop().call_later,
        )
        stream.handler = end
        end.start(stream)

    # Our own certificate

    async def _keep_renewed(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_CHECK_SECONDS)
            try:
                await self._renew(datetime.now(UTC))
            except (ValueError, OSError, StoreUnavailable) as error:
                # A third of its life is left for somebody to read this.
                _log.error("the server's certificate cannot be renewed: %s", error)

    async def _renew(self, now: datetime) -> None:
        """Replace the certificate if it is due. Connections that are open keep the old."""
        identity = await self._state.identity(_host_names(self._settings), now)
        if identity.certificate == self._identity.certificate:
            return
        self._identity = identity
        self._own.context = self._outer_context()
        self._control_context = self._inner_context()
        self._gateway.pools.context = self._gateway_context()
        self._signer.renew(identity.key, identity.certificate)
        _log.info("renewed the server's certificate")

    def _outer_context(self) -> ssl.SSLContext:
        return own_https(
            self._identity.chain_pem, self._identity.key_pem, self._authority.pem
        )

    def _make_gateway(self) -> GatewayFace:
        token_file = self._settings.gateway_token_file
        try:
            tokens = TokenFile(token_file, time.monotonic) if token_file else None
        except BadTokenFile as error:
            raise ProgramFailed(
                f"The file of --gateway-token-file cannot be used: {error}."
            ) from error
        return GatewayFace(
            zone=self._authority.zone,
            registry=self._registry,
            pools=StreamPools(
                self._gateway_context(),
                lambda connection, session: identify_agent(
                    connection, session, self._authority.zone
                ),
                asyncio.get_running_loop(),
            ),
            loop=asyncio.get_running_loop(),
            now=lambda: datetime.now(UTC),
            find_by_token=tokens.caller if tokens is not None else None,
        )

    def _gateway_context(self) -> ssl.SSLContext:
        identity = self._identity
        return inner_client(identity.chain_pem, identity.key_pem, self._authority.pem)

    def _inner_context(self) -> ssl.SSLContext:
        identity = self._identity
        return inner_server(identity.chain_pem, identity.key_pem, self._authority.pem)


def _cannot_listen(option: str, address: HostPort, error: OSError) -> ProgramFailed:
    if error.errno is None or isinstance(error, socket.gaierror):
        reason = error.strerror or str(error)
    else:
        reason = os.strerror(error.errno)  # the error's own repeats the address
    return ProgramFailed(
        f"The server cannot listen on {address} ({reason}): stop what listens there, or "
        f"choose another address of this machine with {option}."
    )
