"""One request and its answer: from the pool's connection back to the client, verbatim.

An `Exchange` belongs to a `RequestRelay` (its `Client`), which has read and judged the
request. It takes a connection, sends the head and what the client brings of the body,
finds where the answer ends, and gives the connection back, or ends it: a connection is
used again only if both bodies were complete and nothing came behind them.

    take ──▶ sending ──▶ head of the answer ──▶ its body ──▶ done
                │                 └── 101 ──▶ raw bytes in both directions ──▶ done
                └── stale connection: once more, if that is safe
"""

import re
from typing import Protocol

from shared.errors import StreamReset
from shared.http.framing import BadBody, Body, EndlessBody, response_body
from shared.http.heads import (
    MAX_HEAD_BYTES,
    BadResponse,
    ResponseHead,
    parse_response_head,
    plain_answer_end,
)
from shared.http.status import Refusal
from shared.http.translation import Outgoing
from shared.http.upstream import Upstream, Upstreams

__all__ = ["Client", "Exchange"]

# Repeating these changes nothing at the member, so a connection that the apiserver had
# closed in the meantime may be replaced unseen. Go's client does the same.
_REPEATABLE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})

_LOCATION = re.compile(
    rb"^(location:[ \t]*)(/(?!/)[^\r]*)", re.IGNORECASE | re.MULTILINE
)


class Client(Protocol):
    """The relay, as its exchange sees it."""

    # The client cannot take more: stop reading the answer.
    writing_is_paused: bool

    def write(self, data: bytes) -> None:
        """Pass this on to the client."""

    def exchange_can_send(self) -> None:
        """The request's bytes are wanted (again)."""

    def exchange_answered(self, status: int) -> None:
        """The apiserver's answer has come, up to the end of its head; for counting."""

    def exchange_upgraded(self) -> None:
        """The 101 has been passed on: from here on the bytes are raw."""

    def exchange_done(self, *, keep_alive: bool) -> None:
        """The answer is complete."""

    def exchange_refused(self, refusal: Refusal) -> None:
        """There is no answer from the apiserver, and nothing was written."""

    def exchange_broken(self, reason: str) -> None:
        """The answer broke off after something of it was written."""


class Exchange:
    """One request on its way; see the module's docstring. Implements UpstreamUser."""

    __slots__ = (
        "_body",
        "_client",
        "_closes_client",
        "_connection",
        "_has_written",
        "_held",
        "_is_over",
        "_is_raw",
        "_is_retried",
        "_outgoing",
        "_pool",
        "_upstream_keeps_alive",
    )

    def __init__(self, client: Client, pool: Upstreams, outgoing: Outgoing) -> None:
        self._client = client
        self._pool = pool
        self._outgoing = outgoing
        # Set while a connection is ours.
        self._connection: Upstream | None = None
        # The framing of the answer's body. None: its head has not come.
        self._body: Body | None = None
        # What has come of the answer's head.
        self._held = b""
        # Something of the answer was written to the client.
        self._has_written = False
        # The client's connection must end behind this answer.
        self._closes_client = not outgoing.keeps_alive
        self._upstream_keeps_alive = outgoing.upgrade is None
        self._is_raw = False
        self._is_retried = False
        self._is_over = False

    # -- the relay ----------------------------------------------------------------------

    @property
    def can_send(self) -> bool:
        """Whether `send` may be called now."""
        return self._connection is not None and not self._connection.writing_is_paused

    @property
    def has_answered(self) -> bool:
        """Whether the client has got something of the answer."""
        return self._has_written

    def start(self) -> None:
        # An upgrade is never repeated and uses its connection up, so it gets a fresh one.
        is_upgrade = self._outgoing.upgrade is not None
        connection = self._pool.take(self, is_fresh=is_upgrade)
        if connection is not None:
            self._begin(connection)

    def send(self, data: bytes) -> None:
        """More of the request's body, or raw bytes after the 101."""
        if self._connection is not None:
            self._connection.write(data)

    def client_ended(self) -> bool:
        """The client ended its direction of a raw connection; False if that cannot pass."""
        return self._connection is not None and self._connection.half_close()

    def close_client(self) -> None:
        """The client's connection is to end behind this answer; it is told if there is time."""
        self._closes_client = True

    def client_paused(self) -> None:
        if self._connection is not None:
            self._connection.pause_reading()

    def client_resumed(self) -> None:
        if self._connection is not None:
            self._connection.resume_reading()

    def abort(self) -> None:
        """The client is gone or must be: what the apiserver does for it is cancelled."""
        if not self._is_over:
            self._is_over = True
            self._drop_connection()

    # -- UpstreamUser -------------------------------------------------------------------

    def upstream_ready(self, connection: Upstream) -> None:
        self._begin(connection)
        if not self._is_over:
            self._client.exchange_can_send()

    def upstream_failed(self, refusal: Refusal) -> None:
        if not self._is_over:
            self._is_over = True
            self._client.exchange_refused(refusal)

    def upstream_received(self, data: bytes) -> None:
        try:
            if self._body is not None:
                self._pass_body(data, 0)
            elif self._is_raw:
                self._client.write(data)
            elif self._held or not self._pass_whole(data):
                self._receive_head(data)
        except (BadResponse, BadBody) as error:
            self._fail(f"the answer of {self._pool.far_end} is not understood: {error}")

    def upstream_ended(self, error: Exception | None) -> None:
        connection, self._connection = self._connection, None
        if self._is_over or connection is None:
            return
        if self._is_raw:
            self._finish(keep_alive=False)
        elif not connection.has_answered and self._may_retry(connection):
            self._is_retried = True
            self._pool.take(self, is_fresh=True)
        elif isinstance(self._body, EndlessBody) and error is None:
            self._finish(keep_alive=False)
        else:
            why = f": {error.reason}" if isinstance(error, StreamReset) else ""
            self._fail(
                f"{self._pool.far_end} closed the connection before its answer was "
                f"complete{why}"
            )

    def upstream_drained(self) -> None:
        if not self._is_over:
            self._client.exchange_can_send()

    # -- inside -------------------------------------------------------------------------

    def _begin(self, connection: Upstream) -> None:
        self._connection = connection
        if self._client.writing_is_paused:
            connection.pause_reading()
        connection.write(self._outgoing.first_bytes)

    def _may_retry(self, connection: Upstream) -> bool:
        outgoing = self._outgoing
        return (
            connection.is_reused
            and not self._is_retried
            and outgoing.method in _REPEATABLE_METHODS
            and outgoing.body is None
            and outgoing.upgrade is None
        )

    def _pass_whole(self, data: bytes) -> bool:
        """Pass on a plain answer that has come whole, as it came; False if it is no such.

        The usual case for small answers, at a third of the price. What is done here
        `_receive_head` would do as well, and it decides about everything else.
        """
        outgoing = self._outgoing
        if self._closes_client or outgoing.method == b"HEAD":
            return False
        if outgoing.body is not None and not outgoing.body.is_complete:
            return False
        end = plain_answer_end(data)
        if end != len(data):
            return False
        self._client.exchange_answered(200)
        self._has_written = True
        self._client.write(data)
        self._finish(keep_alive=True)
        return True

    def _receive_head(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
            self._held = b""
        start = 0
        while self._body is None and not self._is_over:
            end = data.find(b"\r\n\r\n", start)
            if (len(data) if end < 0 else end) - start > MAX_HEAD_BYTES:
                raise BadResponse(f"its head is longer than {MAX_HEAD_BYTES} bytes")
            if end < 0:
                self._held = data[start:]
                return
            end += 4
            raw_head = data[start:end]
            head = parse_response_head(raw_head)
            if head.status == 101:
                self._upgrade(head, data[end:])
                return
            if head.status < 200:
                self._has_written = True
                self._client.write(raw_head)
                start = end
                continue
            self._final_head(head, raw_head, data, end)
            return

    def _final_head(
        self, head: ResponseHead, raw_head: bytes, data: bytes, end: int
    ) -> None:
        outgoing = self._outgoing
        if head.status == 401:
            refusal = self._pool.own_refusal(outgoing.target)
            if refusal is not None:
                self._fail(refusal)
                return
        body = response_body(head, outgoing.method)
        self._client.exchange_answered(head.status)
        request_is_open = outgoing.body is not None and not outgoing.body.is_complete
        if head.closes or request_is_open:
            self._upstream_keeps_alive = False
        endless = (
            body is not None and head.content_length is None and not head.is_chunked
        )
        if endless or request_is_open or head.minor == 0:
            self._closes_client = True
        is_moved = 300 <= head.status < 400
        start = end - len(raw_head)
        if not head.is_plain or self._closes_client or is_moved:
            raw_head = self._rebuilt(head, is_moved=is_moved)
            start = -1
        if body is None:
            self._write_last(raw_head, has_more=len(data) > end)
            return
        passed, behind = body.feed(data, end)
        # The usual case: head and body lie together as they must go out.
        is_whole = start == 0 and behind == len(data) == end + len(passed)
        out = data if is_whole else raw_head + passed
        self._body = body
        if body.is_complete:
            self._write_last(out, has_more=behind < len(data))
        else:
            self._has_written = True
            self._client.write(out)

    def _rebuilt(self, head: ResponseHead, *, is_moved: bool) -> bytes:
        lines = head.lines
        if is_moved:
            # A path of the apiserver's: for the client it lies below the prefix.
            lines = _LOCATION.sub(
                lambda match: match[1] + self._client_path(match[2]), lines
            )
        closing = b"Connection: close\r\n" if self._closes_client else b""
        return head.status_line + lines + closing + b"\r\n"

    def _client_path(self, path: bytes) -> bytes:
        base = self._pool.base_path
        if base and path.startswith(base + b"/"):
            path = path[len(base) :]
        return self._outgoing.prefix + path

    def _pass_body(self, data: bytes, start: int) -> None:
        assert self._body is not None
        passed, behind = self._body.feed(data, start)
        if self._body.is_complete:
            self._write_last(passed, has_more=behind < len(data))
        elif passed:
            self._client.write(passed)

    def _write_last(self, data: bytes, *, has_more: bool) -> None:
        self._has_written = True
        self._client.write(data)
        outgoing = self._outgoing
        request_is_open = outgoing.body is not None and not outgoing.body.is_complete
        if has_more or request_is_open:
            self._upstream_keeps_alive = False
        self._finish(keep_alive=not (self._closes_client or request_is_open))

    def _finish(self, *, keep_alive: bool) -> None:
        self._is_over = True
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._upstream_keeps_alive:
                connection.release()
            else:
                connection.abort()
        self._client.exchange_done(keep_alive=keep_alive)

    def _upgrade(self, head: ResponseHead, rest: bytes) -> None:
        if head.upgrade is None or head.upgrade != self._outgoing.upgrade:
            raise BadResponse("it switches to a protocol that nobody asked for")
        self._has_written = True
        self._is_raw = True
        lines = b"Connection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (
            b"SPDY/3.1" if head.upgrade == b"spdy/3.1" else head.upgrade
        )
        self._client.exchange_answered(head.status)
        self._client.write(head.status_line + head.lines + lines + rest)
        self._client.exchange_upgraded()

    def _fail(self, message: str) -> None:
        self._is_over = True
        self._drop_connection()
        self._refuse_or_break(message)

    def _refuse_or_break(self, message: str) -> None:
        if self._has_written:
            self._client.exchange_broken(message)
        else:
            self._client.exchange_refused(Refusal(code=502, message=message))

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        else:
            self._pool.forget(self)
