"""Two real TunnelConnections over loopback: TLS, WebSocket handshake, session, raw relays.

`TunnelPair` is a small Tower without joins and names: whatever connects to `entry_port`
comes out as a connection to `upstream`, through the server's and the agent's session. It
fails a test in which anything was logged by the event loop as an unhandled exception.
"""

import asyncio
import datetime
import functools
import ipaddress
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Self, cast

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.client import ClientProtocol
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from shared.errors import Code, StreamReset
from shared.mux.session import Role
from shared.mux.stream import Stream
from shared.tunnel.connection import TunnelConnection
from shared.tunnel.relay import relay_pair
from shared.tunnel.tasks import TaskSet
from shared.wire.frames import MAX_MESSAGE_BYTES, GoAway
from shared.wire.hello import SUBPROTOCOL, Hello
from tests.fakes.session_pair import hello

__all__ = ["Owner", "TunnelPair", "Upgrade", "both_loops", "tls_contexts"]

LOOPBACK = "127.0.0.1"


def both_loops(scenario: Callable[[], Awaitable[None]]) -> Callable[..., None]:
    """Make a coroutine function a test that runs on asyncio's loop and on uvloop."""

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def test(loop: str) -> None:
        factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_strictly(scenario))

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


async def _strictly(scenario: Callable[[], Awaitable[None]]) -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    await scenario()
    await asyncio.sleep(0)
    assert not complaints, complaints


@functools.cache
def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context for a certificate of 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(key_pem + pem)
        file.flush()
        server.load_cert_chain(file.name)
    return server, ssl.create_default_context(cadata=pem.decode())


class Owner:
    """A tunnel's owner that notes what it is told; the agent's dials for each stream."""

    def __init__(self, upstream: Callable[[], tuple[str, int]] | None = None) -> None:
        self.upstream = upstream
        self.ready = asyncio.Event()
        self.lost = asyncio.Event()
        self.lost_reasons: list[str] = []
        self.accepted: list[Stream] = []
        self.notices: list[GoAway] = []
        # Called instead of dialling, for tests that want something else of a stream.
        self.on_stream: Callable[[Stream], None] | None = None
        self.tasks = TaskSet("test owner")

    def tunnel_ready(self, connection: TunnelConnection, hello: Hello) -> None:
        self.ready.set()

    def stream_opened(self, connection: TunnelConnection, stream: Stream) -> None:
        if self.on_stream is not None:
            self.on_stream(stream)
        elif self.upstream is None:
            stream.reset(Code.REFUSED, "nothing here")
        else:
            socket_end, stream_end = relay_pair(stream)
            stream.handler = stream_end
            self.tasks.start(self._dial(stream, socket_end), "dial")

    async def _dial(self, stream: Stream, socket_end: asyncio.Protocol) -> None:
        assert self.upstream is not None
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: socket_end, *self.upstream())
        except OSError as error:
            stream.reset(Code.UNREACHABLE, str(error))
        else:
            stream.accept()

    def stream_accepted(self, connection: TunnelConnection, stream: Stream) -> None:
        self.accepted.append(stream)

    def going_away(self, connection: TunnelConnection, notice: GoAway) -> None:
        self.notices.append(notice)

    def tunnel_lost(self, connection: TunnelConnection, reason: str) -> None:
        self.lost_reasons.append(reason)
        self.lost.set()


class Upgrade(asyncio.Protocol):
    """Either side of the WebSocket handshake; then the connection takes over."""

    def __init__(self, pair: "TunnelPair", role: Role) -> None:
        self.pair, self.role = pair, role
        # Whether the connection has taken over.
        self.done = asyncio.get_running_loop().create_future()
        self.websocket: ClientProtocol | ServerProtocol
        if role is Role.AGENT:
            self.websocket = ClientProtocol(
                parse_uri(f"wss://{LOOPBACK}/tunnel"),
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                max_size=MAX_MESSAGE_BYTES,
            )
        else:
            self.websocket = ServerProtocol(
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                max_size=MAX_MESSAGE_BYTES,
            )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # No isinstance here: uvloop's transports are not asyncio's by class.
        self.transport = cast(asyncio.Transport, transport)
        if isinstance(self.websocket, ClientProtocol):
            self.websocket.send_request(self.websocket.connect())
            self.transport.writelines(self.websocket.data_to_send())

    def data_received(self, data: bytes) -> None:
        self.websocket.receive_data(data)
        for event in self.websocket.events_received():
            if isinstance(event, Request):
                assert isinstance(self.websocket, ServerProtocol)
                self.websocket.send_response(self.websocket.accept(event))
                self.transport.writelines(self.websocket.data_to_send())
            else:
                assert isinstance(event, Response) and event.status_code == 101
            assert self.websocket.subprotocol == SUBPROTOCOL
            self.pair.upgraded(self)
            self.done.set_result(None)
            return

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done() and self.role is Role.AGENT:
            self.done.set_exception(ConnectionError("lost in the handshake"))
            self.done.exception()  # the dial may have been given up


class TunnelPair:
    """An asynchronous context with a tunnel that is up; everything is closed behind it."""

    def __init__(
        self,
        upstream: tuple[str, int] = (LOOPBACK, 1),
        via: Callable[[tuple[str, int]], Any] | None = None,
    ) -> None:
        # Where the agent connects the server's streams.
        self.upstream = upstream
        # Makes a relay (a context manager with host and port) for the tunnel's own link.
        self._via = via
        # Where the server listens, and where the agent dials: known after entering.
        self.server_address = self.dial_address = (LOOPBACK, 0)
        self.relay: Any = None
        self.agent_owner = Owner(lambda: self.upstream)
        self.server_owner = Owner()
        self.agent: TunnelConnection
        self.server: TunnelConnection
        self.entry_port = 0
        # Streams that connections to the entry have opened.
        self.entry_streams: list[Stream] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        server_tls, _ = tls_contexts()
        listener = await loop.create_server(
            lambda: Upgrade(self, Role.SERVER), LOOPBACK, 0, ssl=server_tls
        )
        self._stack.callback(listener.close)
        self.server_address = listener.sockets[0].getsockname()[:2]
        self.dial_address = self.server_address
        if self._via is not None:
            self.relay = self._stack.enter_context(self._via(self.server_address))
            self.dial_address = (self.relay.host, self.relay.port)
        await self.dial()
        async with asyncio.timeout(5):
            await self.agent_owner.ready.wait()
            await self.server_owner.ready.wait()
        entry = await loop.create_server(self._entry, LOOPBACK, 0)
        self._stack.callback(entry.close)
        self.entry_port = entry.sockets[0].getsockname()[1]
        return self

    async def dial(self) -> None:
        """Connect the agent to `dial_address`; returns after its HELLO has left.

        Raises:
            OSError: If the connection broke before.
        """
        transport, upgrade = await asyncio.get_running_loop().create_connection(
            lambda: Upgrade(self, Role.AGENT), *self.dial_address, ssl=tls_contexts()[1]
        )
        try:
            await upgrade.done
        except BaseException:
            transport.abort()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self._close()
        finally:
            # uvloop's close waits for ever for what a failed test has left open.
            for connection in (self.agent, self.server):
                connection.abort("the test failed")
            await self._stack.aclose()

    async def _close(self) -> None:
        for connection in (self.agent, self.server):
            connection.close(Code.OK, "the test is over")
        async with asyncio.timeout(10):
            await self.agent_owner.lost.wait()
            await self.server_owner.lost.wait()
        for owner in (self.agent_owner, self.server_owner):
            assert len(owner.lost_reasons) == 1, "told more than once"
            await owner.tasks.close()
        for connection in (self.agent, self.server):
            assert connection.closed and not connection.session.streams
            timer = connection._end_timer
            assert timer is None or timer.cancelled(), "a timer outlives its connection"
            assert not connection._alarm.is_set, "an alarm outlives its connection"

    def upgraded(self, upgrade: Upgrade) -> None:
        is_agent = upgrade.role is Role.AGENT
        owner = self.agent_owner if is_agent else self.server_owner
        connection = TunnelConnection(
            upgrade.role,
            upgrade.websocket,
            hello() if is_agent else hello(session_id=""),
            owner,
        )
        if is_agent:
            self.agent = connection
        else:
            self.server = connection
        connection.start(upgrade.transport)

    def _entry(self) -> asyncio.Protocol:
        try:
            stream = self.server.session.open_stream("tcp/upstream")
        except StreamReset as error:
            return _Refusing(error)
        self.entry_streams.append(stream)
        socket_end, stream_end = relay_pair(stream)
        stream.handler = stream_end
        return socket_end


class _Refusing(asyncio.Protocol):
    def __init__(self, error: StreamReset) -> None:
        self.error = error

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()
