"""The way to an apiserver: TCP or an HTTP proxy, and TLS; or why there is none, in words.

A proxy may want TLS itself. Then there is TLS inside of TLS, and `CONNECT` is said inside the outer
one, by a protocol that reads one answer and is then replaced.
"""

import asyncio
import ssl

from shared.http.apiserver import ApiServer
from shared.http.tls_transport import open_tls
from shared.outbound import (
    Proxy,
    ProxyRefused,
    connect_request,
    open_socket,
    read_connect_answer,
)

__all__ = ["open_route", "why_no_route"]


async def open_route(
    server: ApiServer, protocol: asyncio.Protocol
) -> tuple[asyncio.Transport, asyncio.Transport]:
    """A transport that speaks to the apiserver, and the TCP transport at its bottom.

    Its protocol is the given one, whose connection_made has not been called.

    Raises:
        OSError: If there is no connection (TimeoutError and ssl.SSLError are such).
        ProxyRefused: If the proxy does not want to make one.
    """
    loop = asyncio.get_running_loop()
    if server.proxy is not None:
        transport, source = await _through_proxy(server, server.proxy)
    else:
        # Not create_connection(ssl=...), which keeps the TCP transport to itself.
        source, _ = await loop.create_connection(
            asyncio.Protocol, server.host, server.port
        )
        transport = source
    if server.tls is None:
        transport.set_protocol(protocol)
        return transport, source
    try:
        secure = await open_tls(
            transport, protocol, server.tls, server_hostname=server.server_hostname
        )
    except BaseException:
        # What lies between is the proxy's TLS, which knows nothing of this.
        source.abort()
        raise
    return secure, source


def why_no_route(error: Exception, timeout_seconds: float, proxy: Proxy | None) -> str:
    """A failure of `open_route` in words that an operator can act on."""
    if isinstance(error, ProxyRefused):
        return f"the proxy {proxy} refuses to connect there ({error.status})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason})"
    if isinstance(error, TimeoutError):
        return f"no connection within {timeout_seconds:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return (getattr(error, "strerror", None) or str(error) or "failed").lower()


async def _through_proxy(
    server: ApiServer, proxy: Proxy
) -> tuple[asyncio.Transport, asyncio.Transport]:
    """The same without the apiserver's own TLS."""
    loop = asyncio.get_running_loop()
    connected = await open_socket(server.host, server.port, proxy)
    try:
        source, _ = await loop.create_connection(asyncio.Protocol, sock=connected)
    except BaseException:
        connected.close()
        raise
    if server.proxy_tls is None:
        return source, source
    try:
        asking = _Asking()
        secure = await open_tls(
            source, asking, server.proxy_tls, server_hostname=proxy.host
        )
        secure.write(connect_request(proxy, server.host, server.port))
        status = await asking.status
        if not 200 <= status < 300:
            raise ProxyRefused(status)
    except BaseException:
        source.abort()
        raise
    return secure, source


class _Asking(asyncio.Protocol):
    """Reads the proxy's answer to CONNECT, and not a byte more."""

    def __init__(self) -> None:
        self._answer = b""
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting any more when it fails.
        self.status.add_done_callback(lambda done: done.cancelled() or done.exception())

    def data_received(self, data: bytes) -> None:
        if self.status.done():
            return
        self._answer += data
        try:
            status = read_connect_answer(self._answer)
        except ConnectionError as error:
            self.status.set_exception(error)
            return
        if status is not None:
            self.status.set_result(status)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.status.done():
            self.status.set_exception(
                error or ConnectionError("the proxy gave no answer to CONNECT")
            )
