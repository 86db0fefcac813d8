"""A TCP connection to the server: straight, or through an HTTP proxy.

We make the socket ourselves, and TLS comes on top of it: event loops try one address
after the other with the kernel's patience, which is two minutes for one that swallows
packets.
"""

import asyncio
import socket
from typing import Any

from tower_agent.proxies import Proxy

__all__ = ["ADDRESS_TIMEOUT_SECONDS", "ProxyRefused", "open_socket"]

# For each of a name's addresses: a round trip of a second and one lost SYN (sent again
# after a second). Fresh dials follow, so more patience here would only be slower.
ADDRESS_TIMEOUT_SECONDS = 3.0

# A proxy's answer to CONNECT: a status line and a few headers.
MAX_PROXY_ANSWER_BYTES = 16 * 1024

_END_OF_HEAD = b"\r\n\r\n"


class ProxyRefused(Exception):
    """A proxy answered CONNECT with something else than success."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


async def open_socket(host: str, port: int, proxy: Proxy | None) -> socket.socket:
    """A socket whose other end is host:port. Cancelling closes what was begun.

    Raises:
        OSError: If there is no connection (TimeoutError is one).
        ProxyRefused: If the proxy does not want to make one.
    """
    if proxy is None:
        return await _connect(host, port)
    connected = await _connect(proxy.host, proxy.port)
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
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {name} HTTP/1.1", f"Host: {name}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connected, request)
    answer = b""
    while _END_OF_HEAD not in answer:
        data = await loop.sock_recv(connected, 4096)
        if not data or len(answer) + len(data) > MAX_PROXY_ANSWER_BYTES:
            raise ConnectionError("the proxy gave no answer to CONNECT")
        answer += data
    words = answer.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ConnectionError("the proxy's answer to CONNECT is not HTTP")
    status = int(words[1][:4])
    if status < 300 and not answer.endswith(_END_OF_HEAD):
        # The server speaks only when spoken to, so these bytes are not its own.
        raise ConnectionError("the proxy said more than its answer to CONNECT")
    return status
