"""An HTTP proxy that understands CONNECT, with or without a login, and leads every name to loopback."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator

__all__ = ["HttpProxy", "http_proxy"]


class HttpProxy:
    """What a test may look at: where it listens, and which hosts were asked for."""

    def __init__(self, login: str | None, refuse_with: int | None) -> None:
        self.port = 0
        self.connected_to: list[str] = []
        self._login = login
        self._refuse_with = refuse_with
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        # Only at the end, when asyncio's streams (3.11) take it for an error. A client may
        # leave at any time.
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = {
            k.lower(): v.strip()
            for k, _, v in (line.partition(":") for line in lines[1:])
        }
        if method != "CONNECT":
            writer.write(b"HTTP/1.1 405 Only CONNECT\r\nContent-Length: 0\r\n\r\n")
            return
        if self._refuse_with is not None:
            writer.write(
                b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % self._refuse_with
            )
            return
        wanted = (
            self._login and "Basic " + base64.b64encode(self._login.encode()).decode()
        )
        if wanted and headers.get("proxy-authorization") != wanted:
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                b'Proxy-Authenticate: Basic realm="test"\r\nContent-Length: 0\r\n\r\n'
            )
            return
        self.connected_to.append(target)
        port = int(target.rpartition(":")[2])
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(_pump(reader, forth), _pump(back, writer))
        finally:
            forth.close()
            with contextlib.suppress(OSError):
                await forth.wait_closed()

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def http_proxy(
    *,
    login: str | None = None,
    refuse_with: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[HttpProxy]:
    """Listen on loopback. `login` is USER:PASSWORD; `refuse_with` a status for every CONNECT.

    With `tls` the proxy itself is spoken to in TLS.
    """
    proxy = HttpProxy(login, refuse_with)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()
        await server.wait_closed()
