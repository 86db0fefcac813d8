"""A raw apiserver: takes connections with or without TLS and does exactly as it is told.

    async def script(connection):
        head = await connection.read_head()
        await connection.send(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")

    async with RawUpstream(script, tls=None) as upstream:
        ... upstream.port, upstream.connections ...

The script runs once for each connection; when it returns, the connection is closed.
Everything that came in is in `connection.received`, byte for byte.
"""

import asyncio
import functools
import ipaddress
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = [
    "HOST_NAME",
    "RawConnection",
    "RawUpstream",
    "Script",
    "certificate_and_key",
    "echo_heads",
    "loopback_tls",
]

HOST_NAME = "upstream.test"


@functools.cache
def certificate_and_key() -> tuple[str, str]:
    """A certificate for HOST_NAME and 127.0.0.1 that is its own CA, and its key; PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST_NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName(HOST_NAME),
                    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                ]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )


def loopback_tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context and one of a client that trusts it."""
    certificate, key = certificate_and_key()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as chain:
        chain.write(certificate + key)
        chain.flush()
        server.load_cert_chain(chain.name)
    server.num_tickets = 0
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=certificate)
    return server, client


class RawConnection:
    """One accepted connection, as the script sees it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.received = bytearray()
        # Set when the client's direction ended or broke.
        self.ended = asyncio.Event()

    async def read(self, limit: int = 65536) -> bytes:
        """What comes next; empty at the end."""
        try:
            data = await self.reader.read(limit)
        except ConnectionError:
            data = b""
        self.received += data
        if not data:
            self.ended.set()
        return data

    async def read_head(self) -> bytes:
        """Up to the next empty line; EOFError if the client leaves before."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended.set()
            raise EOFError from None
        self.received += head
        return head

    async def read_exactly(self, count: int) -> bytes:
        data = await self.reader.readexactly(count)
        self.received += data
        return data

    async def read_to_end(self) -> bytes:
        data = b""
        while piece := await self.read():
            data += piece
        return data

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def respond(self, body: bytes, fields: bytes = b"") -> None:
        await self.send(
            b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b"
            % (fields, len(body), body)
        )


Script = Callable[[RawConnection], Awaitable[None]]


async def echo_heads(connection: RawConnection) -> None:
    """Answers each request with the head that came."""
    while True:
        head = await connection.read_head()
        await connection.respond(head)


class RawUpstream:
    """A server on a free loopback port; see the module's docstring."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.tls = tls
        self.port = 0
        self.connections: list[RawConnection] = []
        # What scripts raised, other than a client's leaving: looked at on exit.
        self.errors: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "RawUpstream":
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self.tls, limit=256 * 1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self.connections:
            connection.writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert not self.errors, self.errors

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = RawConnection(reader, writer)
        self.connections.append(connection)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self.script(connection)
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass
        except BaseException as error:
            self.errors.append(error)
        finally:
            writer.close()
