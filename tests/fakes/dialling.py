"""What an agent needs to dial on loopback: credentials of a zone, and servers that misbehave.

    async with RawUpstream(answering(b"HTTP/1.1 403 ..."), tls=server_tls()) as server:
        await Dialer(credentials(server.port), owner, environ={}).dial()

The certificates are real and of one zone; it is made once for all tests.
"""

import dataclasses
import functools
import re
import ssl
import tempfile
from datetime import timedelta
from pathlib import Path

from websockets.utils import accept_key

from certs.assertion import assertion_audience
from certs.contexts import own_https
from certs.names import ClusterName
from tests.certs.zone import ALPHA, NOW, ZONE, Holder, Zone
from tests.fakes.upstream import RawConnection, Script
from tower_agent.credentials import Credentials

__all__ = [
    "agent",
    "answering",
    "credentials",
    "server_tls",
    "switching",
    "the_zone",
    "websocket_frame",
]

LOOPBACK = "127.0.0.1"


@functools.cache
def the_zone() -> Zone:
    with tempfile.TemporaryDirectory() as directory:
        # A day old, so that something may be expired by now.
        return Zone(Path(directory) / "ca", now=NOW - timedelta(days=1))


def agent(cluster: ClusterName = ALPHA) -> Holder:
    """The same key and certificate at every call."""
    return _agent(cluster)


@functools.cache
def _agent(cluster: ClusterName) -> Holder:
    return the_zone().agent(cluster)


def credentials(
    port: int, *, cluster: ClusterName = ALPHA, **changes: object
) -> Credentials:
    """An agent's, for a server on a loopback port."""
    holder = agent(cluster)
    zone = the_zone()
    made = Credentials(
        cluster=cluster,
        zone=ZONE,
        audience=assertion_audience(ZONE),
        server_host=LOOPBACK,
        server_port=port,
        pin=zone.authority.pin,
        token_id="token",
        ca_pem=zone.ca_pem,
        certificate_pem=holder.chain_pem,
        key_pem=holder.key_pem,
        outer_mode="tower",
    )
    return dataclasses.replace(made, **changes)


@functools.cache
def server_tls(*hosts: str) -> ssl.SSLContext:
    """The server's outer TLS, for loopback unless hosts are given."""
    holder = the_zone().server(*hosts)
    return own_https(holder.chain_pem, holder.key_pem)


def answering(answer: bytes, *, then_close: bool = True) -> Script:
    """A server that answers every upgrade with these bytes."""

    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(answer)
        if not then_close:
            await connection.read_to_end()

    return script


def switching(fields: str = "", behind: bytes = b"", *, good: bool = True) -> Script:
    """A server that answers 101 with these further header fields, and what follows at once.

    Not `good`: its proof that it has read our key is wrong.
    """

    async def script(connection: RawConnection) -> None:
        head = (await connection.read_head()).decode()
        key = re.search(r"Sec-WebSocket-Key: (\S+)", head)
        assert key is not None
        accept = accept_key(key[1] if good else "another")
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept}",
        ]
        answer = "\r\n".join(lines) + "\r\n" + fields + "\r\n"
        await connection.send(answer.encode() + behind)
        await connection.read_to_end()

    return script


def websocket_frame(opcode: int, payload: bytes) -> bytes:
    """A short unmasked frame, as servers send them."""
    assert len(payload) < 126
    return bytes((0x80 | opcode, len(payload))) + payload
