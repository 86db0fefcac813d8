"""A small JSON client over the pool, for the agent's own questions to its apiserver.

    status, answer = await request_json(pool, "GET", "/version")

Used for version and UID, reviews of access, and Secrets. It runs as the agent itself:
nothing a caller sent may come in here except as JSON.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from shared.http.framing import (
    BadBody,
    Body,
    ChunkedBody,
    EndlessBody,
    chunked_content,
    response_body,
)
from shared.http.heads import MAX_HEAD_BYTES, BadResponse, parse_response_head
from shared.http.status import Refusal
from shared.http.upstream import Upstream, UpstreamPool

__all__ = ["MAX_ANSWER_BYTES", "TIMEOUT_SECONDS", "JsonCall", "request_json"]

# Nothing that we ask for is larger than a Secret (1 MiB).
MAX_ANSWER_BYTES = 4 * 1024 * 1024

TIMEOUT_SECONDS = 10.0

Answer = tuple[int, dict[str, Any]]


class JsonCall:
    """One question; `on_done` hears the answer, or the Refusal that took its place.

    It is called exactly once, never from within `__init__`. `cancel` keeps it from being called.
    """

    def __init__(
        self,
        pool: UpstreamPool,
        method: str,
        path: str,
        body: Any = None,
        *,
        on_done: Callable[[Answer | Refusal], None],
        loop: asyncio.AbstractEventLoop,
        timeout_seconds: float = TIMEOUT_SECONDS,
        content_type: str = "application/json",
    ) -> None:
        self._pool = pool
        self._method = method.encode("ascii")
        self._request = _request(pool, self._method, path, body, content_type)
        self._on_done: Callable[[Answer | Refusal], None] | None = on_done
        self._connection: Upstream | None = None
        # Bytes of the answer: first of its head, then of its body.
        self._received: list[bytes] = []
        self._received_bytes = 0
        # Set when the head has come.
        self._status = 0
        self._body: Body | None = None
        self._keeps_alive = True
        self._is_retried = False
        self._timer = loop.call_later(timeout_seconds, self._timed_out)
        self._timeout_seconds = timeout_seconds
        connection = pool.take(self)
        if connection is not None:
            self.upstream_ready(connection)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        self._on_done = None
        self._end()

    # -- UpstreamUser -------------------------------------------------------------------

    def upstream_ready(self, connection: Upstream) -> None:
        self._connection = connection
        connection.write(self._request)

    def upstream_failed(self, refusal: Refusal) -> None:
        self._done(refusal)

    def upstream_received(self, data: bytes) -> None:
        try:
            if self._body is None:
                data = b"".join([*self._received, data])
                self._received = []
                self._receive_head(data)
            else:
                self._receive_body(data, 0)
        except (BadResponse, BadBody) as error:
            self._fail(f"the apiserver's answer is not understood: {error}")

    def upstream_ended(self, error: Exception | None) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if isinstance(self._body, EndlessBody) and error is None:
            self._complete()
        elif (
            connection.is_reused
            and not connection.has_answered
            and not self._is_retried
            and self._method == b"GET"
        ):
            self._is_retried = True
            self._pool.take(self, is_fresh=True)
        else:
            self._fail("the apiserver closed the connection without a whole answer")

    def upstream_drained(self) -> None:
        pass  # the request is small and all there

    # -- inside -------------------------------------------------------------------------

    def _receive_head(self, data: bytes) -> None:
        start = 0
        while True:
            end = data.find(b"\r\n\r\n", start)
            if (len(data) if end < 0 else end) - start > MAX_HEAD_BYTES:
                raise BadResponse("its head is too long")
            if end < 0:
                self._received = [data[start:]]
                return
            head = parse_response_head(data[start : end + 4])
            start = end + 4
            if head.status >= 200:
                break
            if head.status == 101:
                raise BadResponse("it switches protocols")
        self._status = head.status
        self._keeps_alive = not head.closes
        self._body = response_body(head, self._method)
        if self._body is None:
            self._keeps_alive = self._keeps_alive and start == len(data)
            self._complete()
        else:
            self._receive_body(data, start)

    def _receive_body(self, data: bytes, start: int) -> None:
        assert self._body is not None
        passed, behind = self._body.feed(data, start)
        self._received.append(passed)
        self._received_bytes += len(passed)
        if self._received_bytes > MAX_ANSWER_BYTES:
            raise BadResponse(f"it is longer than {MAX_ANSWER_BYTES} bytes")
        if self._body.is_complete:
            self._keeps_alive = self._keeps_alive and behind == len(data)
            self._complete()

    def _complete(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._keeps_alive and not isinstance(self._body, EndlessBody):
                connection.release()
            else:
                connection.abort()
        payload = b"".join(self._received)
        if isinstance(self._body, ChunkedBody):
            payload = chunked_content(payload)
        try:
            answer = json.loads(payload) if payload else {}
        except ValueError:
            answer = {"message": payload[:200].decode("utf-8", "replace")}
        self._done((self._status, answer if isinstance(answer, dict) else {}))

    def _timed_out(self) -> None:
        self._done(
            Refusal(
                code=504,
                message="the apiserver did not answer within "
                f"{self._timeout_seconds:g} s",
            )
        )

    def _fail(self, message: str) -> None:
        self._done(Refusal(code=502, message=message))

    def _done(self, answer: Answer | Refusal) -> None:
        self._end()
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(answer)

    def _end(self) -> None:
        self._timer.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        else:
            self._pool.forget(self)


def _request(
    pool: UpstreamPool, method: bytes, path: str, body: Any, content_type: str
) -> bytes:
    server = pool.apiserver
    payload = b"" if body is None else json.dumps(body).encode()
    head = b"%b %b%b HTTP/1.1\r\nHost: %b\r\nAccept: application/json\r\n%b" % (
        method,
        server.base_path,
        path.encode("ascii"),
        server.authority,
        server.credential.line(),
    )
    if body is not None:
        head += b"Content-Type: %b\r\nContent-Length: %d\r\n" % (
            content_type.encode("ascii"),
            len(payload),
        )
    return head + b"\r\n" + payload


async def request_json(
    pool: UpstreamPool,
    method: str,
    path: str,
    body: Any = None,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    content_type: str = "application/json",
) -> Answer:
    """Ask and wait: the HTTP status and the JSON object of the answer.

    Any status is an answer, 401 and 403 too. Cancelling it ends the request.

    Raises:
        Refusal: If there is no answer; its message says why.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer] = loop.create_future()

    def on_done(answer: Answer | Refusal) -> None:
        if future.done():
            return
        if isinstance(answer, Refusal):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    call = JsonCall(
        pool,
        method,
        path,
        body,
        on_done=on_done,
        loop=loop,
        timeout_seconds=timeout_seconds,
        content_type=content_type,
    )
    try:
        return await future
    finally:
        call.cancel()
