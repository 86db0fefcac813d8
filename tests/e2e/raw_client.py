"""A bare HTTPS client over one kept connection, for load and for probing what works now.

It reads an ordinary kubeconfig (certificates, `tls-server-name`, a path in the URL) and
does what a control plane's client does, at a tenth of the cost and without any retry that
could hide a wrong answer.
"""

import asyncio
import base64
import dataclasses
import json
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

__all__ = ["Access", "Answer", "RawClient", "ask_once", "works"]

# One look of a probe: less than the server's two seconds of holding a request for an agent
# that is away, so that a probe is back in time for the next look.
PROBE_TIMEOUT_SECONDS = 1.0


class Access:
    """What a kubeconfig says, ready for connections."""

    def __init__(self, kubeconfig: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        cluster = document["clusters"][0]["cluster"]
        user = document["users"][0]["user"]
        url = urlsplit(cluster["server"])
        self.host = url.hostname or ""
        self.port = url.port or 443
        # /clusters/alpha, or nothing.
        self.prefix = url.path.rstrip("/")
        self.server_name = cluster.get("tls-server-name", self.host)
        self.context = ssl.create_default_context(
            cadata=_decoded(cluster["certificate-authority-data"])
        )
        # OpenSSL loads client certificates from files only.
        descriptor, name = tempfile.mkstemp(prefix="tower-e2e-client-")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(_decoded(user["client-certificate-data"]))
                file.write(_decoded(user["client-key-data"]))
            self.context.load_cert_chain(name)
        finally:
            os.unlink(name)


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A response with its body read."""

    status: int
    # Names in small letters; of equal names the last.
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One TLS connection; requests go one after the other. Use as a context manager."""

    def __init__(self, access: Access) -> None:
        self._access = access
        # Both set by __aenter__.
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            self._access.host,
            self._access.port,
            ssl=self._access.context,
            server_hostname=self._access.server_name,
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # Whatever state it is in: nothing of it is needed any more.
        self._writer.transport.abort()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request and read its answer.

        Raises:
            OSError, EOFError: If the connection does not last that long.
        """
        payload = b"" if body is None else json.dumps(body).encode()
        await self._send(method, path, payload, headers or {})
        return await self._read_answer()

    async def _send(
        self, method: str, path: str, payload: bytes, headers: dict[str, str]
    ) -> None:
        head = [
            f"{method} {self._access.prefix}{path} HTTP/1.1",
            f"Host: {self._access.host}:{self._access.port}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if payload:
            head += [
                "Content-Type: application/json",
                f"Content-Length: {len(payload)}",
            ]
        self._writer.write("\r\n".join([*head, "", ""]).encode() + payload)
        await self._writer.drain()

    async def lines(self, path: str) -> AsyncIterator[bytes]:
        """GET what answers line by line (a watch), until it ends.

        Raises:
            OSError, EOFError: If the connection does not last that long, or for another
                status than 200.
        """
        await self._send("GET", path, b"", {})
        status, headers = await self._read_head()
        if status != 200 or headers.get("transfer-encoding") != "chunked":
            raise ConnectionError(f"{path}: status {status}")
        rest = b""
        while chunk := await self._read_chunk():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line

    # What a bad reader does

    def receive_buffer(self, size_bytes: int) -> None:
        """Let the kernel hold little for us."""
        near = self._writer.get_extra_info("socket")
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)

    def pause_reading(self) -> None:
        """Take nothing any more, until `resume_reading`."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume_reading(self) -> None:
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def _read_answer(self) -> Answer:
        status, headers = await self._read_head()
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in self._chunks()])
        else:
            body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(status=status, headers=headers, body=body)

    async def _read_head(self) -> tuple[int, dict[str, str]]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.split("\r\n")[:-2]
        fields = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        return int(status_line.split()[1]), headers

    async def _chunks(self) -> AsyncIterator[bytes]:
        while chunk := await self._read_chunk():
            yield chunk

    async def _read_chunk(self) -> bytes:
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:size]


async def ask_once(access: Access, path: str) -> Answer:
    """One GET on a connection of its own."""
    async with RawClient(access) as client:
        return await client.request("GET", path)


def works(access: Access, path: str = "/api/v1/namespaces/default") -> bool:
    """Whether a GET on a new connection is answered with 200 right now."""
    try:
        answer = asyncio.run(
            asyncio.wait_for(ask_once(access, path), PROBE_TIMEOUT_SECONDS)
        )
    # EOFError: closed before the answer; TimeoutError and ssl.SSLError are OSErrors.
    except (OSError, EOFError):
        return False
    return answer.status == 200
