"""A TCP connection to somebody far away: straight, or through an HTTP proxy.

We make the socket ourselves, and TLS comes on top of it: event loops try one address
after the other with the kernel's patience, which is two minutes for one that swallows
packets.
"""

import asyncio
import base64
import dataclasses
import socket
from typing import Any

__all__ = [
    "ADDRESS_TIMEOUT_SECONDS",
    "MAX_PROXY_ANSWER_BYTES",
    "Proxy",
    "ProxyRefused",
    "connect_request",
    "open_socket",
    "read_connect_answer",
]

# For each of a name's addresses: a round trip of a second and one lost SYN (sent again
# after a second). Fresh dials follow, so more patience here would only be slower.
ADDRESS_TIMEOUT_SECONDS = 3.0

# A proxy's answer to CONNECT: a status line and a few headers.
MAX_PROXY_ANSWER_BYTES = 16 * 1024

_END_OF_HEAD = b"\r\n\r\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proxy:
    """An HTTP proxy to CONNECT through. Its repr and str never show the credentials."""

    host: str
    port: int
    user: str | None = dataclasses.field(default=None, repr=False)
    password: str | None = dataclasses.field(default=None, repr=False)
    # TLS to the proxy itself, which is then for the caller of `open_socket` to do.
    is_tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The proxy's URL without credentials."""
        return f"{'https' if self.is_tls else 'http'}://{self}"

    @property
    def authorization(self) -> str | None:
        """The Proxy-Authorization header's value (a secret), or None."""
        if self.user is None:
            return None
        pair = f"{self.user}:{self.password or ''}".encode()
        return "Basic " + base64.b64encode(pair).decode()


class ProxyRefused(Exception):
    """A proxy answered CONNECT with something else than success."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


async def open_socket(host: str, port: int, proxy: Proxy | None) -> socket.socket:
    """A socket whose other end is host:port. Cancelling closes what was begun.

    To a proxy that wants TLS it only connects, as if that were where we want to go: say
    `connect_request` inside of it.

    Raises:
        OSError: If there is no connection (TimeoutError is one).
        ProxyRefused: If the proxy does not want to make one.
    """
    if proxy is None:
        return await _connect(host, port)
    connected = await _connect(proxy.host, proxy.port)
    if proxy.is_tls:
        return connected
    try:
        status = await _ask_proxy(connected, proxy, host, port)
        if not 200 <= status < 300:
            raise ProxyRefused(status)
    except BaseException:
        connected.close()
        raise
    return connected


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure = OSError(f"{host} has no address")
    for family, kind, number, _, address in infos:
        try:
            return await _connect_address(family, kind, number, address)
        except OSError as error:
            failure = error
    raise failure


async def _connect_address(
    family: int, kind: int, number: int, address: Any
) -> socket.socket:
    connecting = socket.socket(family, kind, number)
    try:
        connecting.setblocking(False)
        async with asyncio.timeout(ADDRESS_TIMEOUT_SECONDS):
            await asyncio.get_running_loop().sock_connect(connecting, address)
    except BaseException:
        connecting.close()
        raise
    return connecting


async def _ask_proxy(
    connected: socket.socket, proxy: Proxy, host: str, port: int
) -> int:
    """Say CONNECT; returns the status of the answer."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connected, connect_request(proxy, host, port))
    answer = b""
    while (status := read_connect_answer(answer)) is None:
        data = await loop.sock_recv(connected, 4096)
        if not data:
            raise ConnectionError("the proxy gave no answer to CONNECT")
        answer += data
    return status


def connect_request(proxy: Proxy, host: str, port: int) -> bytes:
    """What asks a proxy for host:port."""
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {name} HTTP/1.1", f"Host: {name}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def read_connect_answer(answer: bytes) -> int | None:
    """The status that a proxy answered with; None while the answer is not complete.

    Raises:
        ConnectionError: If it is none, or too long.
    """
    if len(answer) > MAX_PROXY_ANSWER_BYTES:
        raise ConnectionError("the proxy gave no answer to CONNECT")
    if _END_OF_HEAD not in answer:
        return None
    words = answer.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ConnectionError("the proxy's answer to CONNECT is not HTTP")
    status = int(words[1][:4])
    if status < 300 and not answer.endswith(_END_OF_HEAD):
        # The server speaks only when spoken to, so these bytes are not its own.
        raise ConnectionError("the proxy said more than its answer to CONNECT")
    return status
