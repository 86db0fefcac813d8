"""The gateway with members behind it: a server, agents with real tunnels, scripted apiservers.

async with GatewayBench() as bench:
    await bench.connect("alpha")
    client = await bench.client(bench.user("tower:admin"))
    answer = await client.get("/clusters/alpha/api")
"""

import asyncio
import json
import ssl
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from certs.chains import pem
from certs.contexts import HTTP_PROTOCOL, inner_server, sealed_server
from certs.keys import new_key, private_pem
from certs.names import ClusterName
from shared.http.apiserver import ApiServer, Credential
from shared.http.identity import Policy
from shared.http.upstream import UpstreamPool
from shared.member.gateway import GATEWAY_TARGET, GatewayFace
from shared.member.sealed import SealedFace
from shared.mux.stream import Stream
from tests.fakes.host_side import AgentSide, HostSide
from tests.fakes.tunnel_pair import LOOPBACK
from tests.fakes.upstream import RawUpstream, Script, echo_heads

__all__ = ["SECONDS", "Answer", "Client", "GatewayBench", "Site", "anyone"]

# Long enough for any machine; a test that waits this long has failed.
SECONDS = 10.0


def anyone() -> Policy:
    """An agent that lets the host act as everybody (but `system:`)."""
    return Policy(users=frozenset({"*"}), groups=frozenset({"*"}))


@dataclass(frozen=True)
class Answer:
    """One answer, read to its end."""

    head: bytes
    body: bytes

    @property
    def code(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def closes(self) -> bool:
        return b"connection: close" in self.head.lower()

    def field(self, name: str) -> str:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return ""

    @property
    def status(self) -> dict[str, Any]:
        """The Status object that it is."""
        status: dict[str, Any] = json.loads(self.body)
        assert status["kind"] == "Status" and status["code"] == self.code
        return status


class Client:
    """One connection to the gateway."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, has_body: bool = True) -> Answer:
        async with asyncio.timeout(SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            body = b""
            if has_body and length:
                body = await self.reader.readexactly(int(length))
            elif has_body and b"transfer-encoding: chunked" in head.lower():
                body = await self.reader.readuntil(b"0\r\n\r\n")
        return Answer(head, body)

    async def get(self, path: str, *fields: str) -> Answer:
        lines = "".join(f"{field}\r\n" for field in fields)
        self.send(f"GET {path} HTTP/1.1\r\nHost: h\r\n{lines}\r\n".encode())
        return await self.answer()

    async def rest(self) -> bytes:
        """What comes until the connection ends."""
        try:
            async with asyncio.timeout(SECONDS):
                return await self.reader.read()
        except (ConnectionError, ssl.SSLError):
            return b""

    def close(self) -> None:
        self.writer.transport.abort()


class Site:
    """A member: an agent's end of the gateway, and its apiserver."""

    def __init__(self, upstream: RawUpstream, agent: AgentSide | None) -> None:
        self.upstream = upstream
        # None: a direct connection.
        self.agent = agent
        # Every stream that was opened to the gateway's target.
        self.streams: list[Stream] = []
        self.sealed: SealedFace
        self.face: GatewayFace

    @property
    def received(self) -> bytes:
        """All that came to the apiserver."""
        return b"".join(bytes(c.received) for c in self.upstream.connections)

    def open(self, stream: Stream) -> None:
        assert stream.target == GATEWAY_TARGET
        self.streams.append(stream)
        self.face.open(stream)


class GatewayBench:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.host: HostSide
        self._stack = AsyncExitStack()
        self.clients: list[Client] = []

    async def __aenter__(self) -> Self:
        self.host = await self._stack.enter_async_context(HostSide())
        return self

    async def __aexit__(self, *error: Any) -> None:
        for client in self.clients:
            client.close()
        await self._stack.__aexit__(*error)

    async def connect(
        self,
        name: str = "alpha",
        script: Script = echo_heads,
        policy: Policy | None = None,
    ) -> Site:
        """A member whose agent has joined and is connected."""
        upstream = await self._stack.enter_async_context(RawUpstream(script))
        agent = AgentSide(await self.host.join(name))
        site = Site(upstream, agent)
        self._serve(site, policy or Policy())
        agent.owner.on_stream = site.open
        agent.tunnel = await self.host.dial(agent.credentials, agent.owner)
        return site

    def _serve(self, site: Site, policy: Policy) -> None:
        assert site.agent is not None
        own = site.agent.credentials
        apiserver = ApiServer(
            host=LOOPBACK,
            port=site.upstream.port,
            tls=None,
            server_hostname=None,
            credential=Credential(token="agents-own", monotonic=lambda: 0.0),
        )
        pool = UpstreamPool(apiserver, loop=asyncio.get_running_loop())
        site.sealed = SealedFace(
            sealed_server(own.certificate_pem, own.key_pem, own.ca_pem),
            cluster=own.cluster,
            zone=own.zone,
            policy=policy,
            pool=pool,
        )
        site.face = GatewayFace(
            site.sealed,
            cluster=own.cluster,
            zone=own.zone,
            context=inner_server(own.certificate_pem, own.key_pem, own.ca_pem),
        )
        self._stack.push_async_callback(pool.close)
        self._stack.callback(site.sealed.close, "the test is over")

    # Callers

    def user(
        self,
        user: str = "tower:admin",
        groups: Sequence[str] = ("tower:cluster-admins",),
        clusters: Sequence[str] | None = None,
        *,
        ttl: timedelta = timedelta(hours=1),
    ) -> ssl.SSLContext:
        """What a caller with a user certificate connects with."""
        key, now = new_key(), datetime.now(UTC)
        certificate = self.host.authority.issue_user(
            key.public_key(),
            user=user,
            groups=tuple(groups),
            clusters=None
            if clusters is None
            else frozenset(ClusterName(name) for name in clusters),
            ttl=ttl,
            now=now,
        )
        return self.holder(pem(certificate), private_pem(key))

    def holder(self, certificate_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
        context = self.stranger()
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            Path(file.name).write_bytes(certificate_pem + key_pem)
            context.load_cert_chain(file.name)
        return context

    def stranger(self) -> ssl.SSLContext:
        """Without a certificate."""
        context = ssl.create_default_context(cadata=self.host.authority.pem.decode())
        context.set_alpn_protocols([HTTP_PROTOCOL])
        return context

    async def client(self, context: ssl.SSLContext | None = None) -> Client:
        """A connection of a caller; of an admin, if nothing is said."""
        reader, writer = await asyncio.open_connection(
            LOOPBACK,
            self.host.port,
            ssl=context or self.user(),
            server_hostname=LOOPBACK,
            limit=256 * 1024,
        )
        client = Client(reader, writer)
        self.clients.append(client)
        return client
