"""A few HTTPS requests to one server, direct or through an HTTP proxy, under one TLS context.

A thin layer over aiohttp: it bounds time and size, follows no redirect, and translates aiohttp's
exceptions into the builtin that lies at the bottom of each, which `preflight` has words for.
"""

import dataclasses
import socket
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

from shared.outbound import Proxy
from tower_agent.causes import explain_no_connection, explain_proxy_refusal

__all__ = ["MAX_ANSWER_BYTES", "Answer", "Exchange", "ExchangeFailed"]

# A join's answer has two certificates in a signed envelope that brings two more: below 10 KiB.
MAX_ANSWER_BYTES = 128 * 1024

# One request: a TLS handshake through a proxy at 500 ms round trip takes 3 s.
REQUEST_TIMEOUT_SECONDS = 4.0

# What a server may ask us to wait; more is beyond the deadline of a join anyway.
MAX_RETRY_AFTER_SECONDS = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: Mapping[str, str]  # looked up without regard to case
    body: bytes = dataclasses.field(repr=False)

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    @property
    def retry_after_seconds(self) -> float:
        """What Retry-After asks for; 0 without one (a date counts as none)."""
        text = self.headers.get("Retry-After", "")
        return min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isdecimal() else 0.0


class ExchangeFailed(Exception):
    """There was no answer. `cause` is the builtin exception at the bottom of it."""

    def __init__(
        self,
        cause: BaseException,
        *,
        proxy: Proxy | None,
        proxy_status: int | None = None,
    ) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self._proxy = str(proxy) if proxy else None
        # The status with which the proxy refused to connect, if it did.
        self._proxy_status = proxy_status

    @property
    def permanent(self) -> bool:
        """False if it may pass by itself: nothing listens yet, a packet was lost, DNS hiccups."""
        if self._proxy_status is not None:
            return self._proxy_status not in (502, 503, 504)
        if isinstance(self.cause, socket.gaierror):
            return self.cause.errno != socket.EAI_AGAIN
        return isinstance(self.cause, ssl.SSLError | ValueError)

    def explain(self, address: str) -> str:
        """Say it in one sentence with the remedy."""
        if self._proxy_status is not None and self._proxy is not None:
            return explain_proxy_refusal(
                self._proxy_status, address=address, proxy=self._proxy
            )
        return explain_no_connection(self.cause, address=address, proxy=self._proxy)


class Exchange:
    """Requests under one TLS context; connections are kept between them. Close it."""

    def __init__(
        self, *, host: str, port: int, context: ssl.SSLContext, proxy: Proxy | None
    ) -> None:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._base = f"https://{authority}"
        self._context = context
        self._proxy = proxy
        # Made with the first request, as aiohttp wants a running loop.
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; repeating is harmless."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Answer:
        """Send one request with a JSON body and read the whole answer.

        Raises:
            ExchangeFailed: If there is none, in time and in bounds.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._context),
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
                trust_env=False,  # `proxies` reads the environment, and nothing reads ~/.netrc
            )
        authorization = self._proxy.authorization if self._proxy else None
        try:
            async with self._session.request(
                method,
                self._base + path,
                json=body,
                allow_redirects=False,
                proxy=self._proxy.url if self._proxy else None,
                proxy_headers={"Proxy-Authorization": authorization}
                if authorization
                else None,
            ) as response:
                content = await response.content.read(MAX_ANSWER_BYTES + 1)
                while len(content) <= MAX_ANSWER_BYTES:
                    more = await response.content.read(MAX_ANSWER_BYTES + 1)
                    if not more:
                        break
                    content += more
                return Answer(
                    status=response.status,
                    headers=response.headers,
                    body=content[:MAX_ANSWER_BYTES],
                )
        except aiohttp.ClientHttpProxyError as error:
            raise ExchangeFailed(
                error, proxy=self._proxy, proxy_status=error.status
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ExchangeFailed(_bottom(error), proxy=self._proxy) from error


def _bottom(error: Exception) -> BaseException:
    """Return the builtin exception that aiohttp's is about."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return error.certificate_error
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return ConnectionResetError("closed before the answer was complete")
    if isinstance(error, aiohttp.ClientResponseError):
        return ValueError("its answer is not HTTP")
    return error
