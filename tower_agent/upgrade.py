"""The WebSocket upgrade of a tunnel: asks for it, and reads the answer within bounds.

Anything may answer: the server, a proxy, a captive portal. So only a 101 goes to the
WebSocket library; of all else we read the head and as much body as a sentence of the
server needs, and no longer than that takes.
"""

import asyncio
import logging
from typing import cast

from websockets.client import ClientProtocol
from websockets.http11 import Response
from websockets.uri import WebSocketURI

from shared.http.framing import (
    BadBody,
    Body,
    ChunkedBody,
    chunked_content,
    response_body,
)
from shared.http.heads import (
    MAX_HEAD_BYTES,
    BadResponse,
    ResponseHead,
    parse_response_head,
)
from shared.wire.frames import MAX_MESSAGE_BYTES
from shared.wire.hello import VERSIONS, subprotocol
from tower_agent.causes import UpgradeAnswer

__all__ = ["MAX_BODY_BYTES", "Upgrade"]

# Of a refusal. The server's own have some 200 bytes; a portal's page says nothing to us.
MAX_BODY_BYTES = 16 * 1024
# How long we wait for the rest of a refusal whose head is here.
BODY_SECONDS = 2.0

# With debug logging the library would write every head, and so the assertion, and the
# beginning of every frame into the log.
_library_log = logging.getLogger(f"{__name__}.websocket")
_library_log.setLevel(logging.WARNING)


class Upgrade(asyncio.Protocol):
    """A connection between its TLS handshake and the answer to its upgrade.

    Await `answered`, then look at `succeeded`. After that the transport is the caller's;
    frames that have come by then are in `websocket`.
    """

    def __init__(self, host: str, port: int, assertion: str) -> None:
        self.websocket = _websocket(host, port)
        request = self.websocket.connect()
        request.headers["Authorization"] = f"Bearer {assertion}"
        self._request = request
        # The request has been sent: what goes wrong now is not the way to the server.
        self.is_sent = False
        # The answer, whatever it is; an OSError when there is none, a ValueError when it
        # is not HTTP.
        self.answered: asyncio.Future[UpgradeAnswer] = (
            asyncio.get_running_loop().create_future()
        )
        # What came before the head was complete.
        self._seen = b""
        # Of a refusal, once its head is here: its framing, what came of it, its deadline.
        self._head: ResponseHead | None = None
        self._body: Body | None = None
        self._content = b""
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def succeeded(self) -> bool:
        """The answer is a 101 to our request that speaks our protocol."""
        websocket = self.websocket
        return websocket.handshake_exc is None and websocket.subprotocol is not None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass, only the same.
        transport = cast(asyncio.Transport, transport)
        self.websocket.send_request(self._request)
        for data in self.websocket.data_to_send():
            transport.write(data)
        self.is_sent = True

    def data_received(self, data: bytes) -> None:
        if self.answered.done():
            # Frames behind a 101 wait in the websocket until the session takes over.
            if self.succeeded:
                self.websocket.receive_data(data)
            return
        try:
            if self._head is None:
                self._receive_head(self._seen + data)
            else:
                self._receive_body(data, 0)
        except (BadResponse, BadBody) as error:
            self._fail(ValueError(f"its answer is not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._head is not None:
            self._refused()  # a body may end with its connection
        self._fail(error or ConnectionResetError("closed before an answer"))

    # The answer

    def _receive_head(self, seen: bytes) -> None:
        start = 0
        while True:
            end = seen.find(b"\r\n\r\n", start)
            if (len(seen) if end < 0 else end) - start > MAX_HEAD_BYTES:
                raise BadResponse("its head is too long")
            if end < 0:
                self._seen = seen[start:]
                return
            end += 4
            head = parse_response_head(seen[start:end])
            if head.status == 101:
                self._switch(seen[start:])
                return
            if head.status >= 200:
                break
            start = end  # RFC 9110, 15.2: interim answers are skipped
        self._head = head
        self._body = response_body(head, b"GET")
        self._deadline = asyncio.get_running_loop().call_later(
            BODY_SECONDS, self._refused
        )
        self._receive_body(seen, end)

    def _switch(self, seen: bytes) -> None:
        websocket = self.websocket
        websocket.receive_data(seen)
        # Only the answer is taken out: frames behind it stay for the session.
        if websocket.events and isinstance(websocket.events[0], Response):
            del websocket.events[0]
        self.answered.set_result(UpgradeAnswer(status=101))

    def _receive_body(self, data: bytes, start: int) -> None:
        if self._body is not None:
            passed, _ = self._body.feed(data, start)
            self._content += passed
        if (
            self._body is None
            or self._body.is_complete
            or len(self._content) > MAX_BODY_BYTES
        ):
            self._refused()

    def _refused(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self.answered.done() or self._head is None:
            return
        content = self._content
        if isinstance(self._body, ChunkedBody):
            content = chunked_content(content) if self._body.is_complete else b""
        fields = (
            line.decode("latin-1").partition(":")
            for line in self._head.lines.split(b"\r\n")
            if line
        )
        self.answered.set_result(
            UpgradeAnswer(
                status=self._head.status,
                headers={name: value.strip() for name, _, value in fields},
                body=content[:MAX_BODY_BYTES],
            )
        )

    def _fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)
            # Nobody may be waiting any more; that is no error of its own.
            self.answered.exception()


def _websocket(host: str, port: int) -> ClientProtocol:
    uri = WebSocketURI(
        secure=True,
        host=host,
        port=port,
        path="/tunnel",
        query="",
        username=None,
        password=None,
    )
    return ClientProtocol(
        uri,
        subprotocols=[subprotocol(v) for v in VERSIONS],  # type: ignore[misc]
        max_size=MAX_MESSAGE_BYTES,
        logger=_library_log,
    )
