"""One client connection: requests come in, one after the other, and go to the apiserver.

`RequestRelay` is the `StreamHandler` of a plaintext stream whose caller is known. It
finds heads, has them translated, and hands each request to an `Exchange`. What it cannot
pass on it leaves uncredited, so the client stalls instead of our memory growing: bytes of
the next request while one is answered, a body that the apiserver does not take, and
everything behind an upgrade until the 101.

    HEAD ──▶ REVIEW (only with --as) ──▶ BODY ──body complete──▶ ANSWER ──101──▶ RAW
     ▲                                                               │            │
     └───────────────── answer complete, keep-alive ─────────────────┤            │
    any ──▶ CLOSING: our direction has ended, what still comes is dropped ◀───────┘
    any ──▶ CLOSED: the stream is over

Somewhat longer than our files are: it is one state machine.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol

from shared.errors import Code, StreamReset
from shared.http.deadlines import Deadline
from shared.http.exchange import Exchange
from shared.http.framing import BadBody
from shared.http.heads import MAX_HEAD_BYTES
from shared.http.identity import Review
from shared.http.status import Refusal
from shared.http.translation import AnotherRoute, Outgoing, Translate
from shared.http.upstream import Upstreams
from shared.streams import ByteStream

__all__ = ["AnswerCounts", "Limits", "RelayOwner", "RequestRelay"]

_BARE_LF = re.compile(rb"(?<!\r)\n")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a client may take for what."""

    # A head is one or two packets. Go's servers give 32 s (Kubernetes), nginx 60 s.
    head_seconds: float = 30.0
    # Between requests. Go's clients close after 90 s by themselves; being later than
    # they are keeps us from closing a connection that a request is just coming on.
    idle_seconds: float = 180.0
    # When all connections are to end, one that is idle for this long does: a client that
    # just got an answer may be sending its next request at this moment.
    wind_down_seconds: float = 1.0
    # Until the other side has ended too, after we have, before the stream is reset.
    linger_seconds: float = 5.0
    # The apiserver's last words after the client has left an upgraded connection. No
    # client of Kubernetes ends only its own direction there, and the other end of an
    # `exec` should learn soon that nobody is there any more.
    raw_linger_seconds: float = 1.0


@dataclass(kw_only=True)
class AnswerCounts:
    """How many requests were answered, by status: by the apiserver, and by ourselves (refusals)."""

    by_apiserver: Counter[int] = field(default_factory=Counter)
    by_agent: Counter[int] = field(default_factory=Counter)

    def copy(self) -> "AnswerCounts":
        """The counts as they are now, for somebody who reads them later."""
        return AnswerCounts(
            by_apiserver=self.by_apiserver.copy(), by_agent=self.by_agent.copy()
        )


class RelayOwner(Protocol):
    """What all relays of one agent share."""

    loop: asyncio.AbstractEventLoop
    limits: Limits
    answers: AnswerCounts

    @property
    def pool(self) -> Upstreams | None:
        """Where requests go. None: each says it itself."""

    def now(self) -> datetime:
        """The wall clock's time, with its zone."""

    def ask(self, review: Review, on_answer: Callable[[Refusal | None], None]) -> None:
        """Answer whether an impersonation is allowed, now or later."""

    def relay_closed(self, relay: "RequestRelay") -> None:
        """This relay's stream is over."""


class _State(Enum):
    HEAD = "waiting for a request's head"
    REVIEW = "waiting whether the caller may impersonate"
    BODY = "the request's body goes out; its answer may come"
    ANSWER = "the request is out; its answer comes"
    RAW = "upgraded: bytes go both ways unread"
    CLOSING = "our direction has ended"
    CLOSED = "the stream is over"


class RequestRelay:
    """Serves one connection of one caller; `RequestService` makes it."""

    __slots__ = (
        "_client_has_ended",
        "_deadline",
        "_early_bytes",
        "_exchange",
        "_expiry",
        "_head_has_begun",
        "_is_advancing",
        "_outgoing",
        "_owner",
        "_pending",
        "_pending_bytes",
        "_state",
        "_stream",
        "_translate",
        "_winds_down",
        "not_after",
        "serial",
        "writing_is_paused",
    )

    def __init__(
        self,
        stream: ByteStream,
        *,
        translate: Translate,
        owner: RelayOwner,
        not_after: datetime | None,
        serial: int | None,
    ) -> None:
        # The caller's credential: when it ends this connection ends, and how a deny-list
        # names it. None for a caller who is refused anyway.
        self.not_after = not_after
        self.serial = serial
        self._stream = stream
        self._translate = translate
        self._owner = owner
        self._state = _State.HEAD
        # What came and is not passed on, in order: uncredited, so the window bounds it.
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        # ... but for so much at its front, which the limit of a head bounds.
        self._early_bytes = 0
        # Part of a head has come: its time runs.
        self._head_has_begun = False
        # The request in hand, from its head until its answer is complete.
        self._outgoing: Outgoing | None = None
        self._exchange: Exchange | None = None
        # The stream below cannot take more for now; exchanges look at it.
        self.writing_is_paused = False
        # No more will come from the client.
        self._client_has_ended = False
        # This connection is to end behind the present answer, or soon if there is none.
        self._winds_down = False
        # Guards _advance against being called from within itself.
        self._is_advancing = False
        # When the client must have done its next step; unset while it is our turn.
        self._deadline = Deadline(owner.loop, self._client_is_late)
        self._deadline.set(owner.limits.idle_seconds)
        # When the caller's credential ends.
        self._expiry = Deadline(owner.loop, self._credential_ended)
        self._watch_credential()

    @property
    def is_idle(self) -> bool:
        """Between two requests: ending it now interrupts nothing."""
        return self._state is _State.HEAD and not self._pending

    def end(self, code: Code, reason: str) -> None:
        """End it now, whatever it is doing: the caller was revoked, the agent stops."""
        if self._state is not _State.CLOSED:
            self._stream.reset(code, reason)
            self._over()

    def wind_down(self) -> None:
        """End behind the answer that is under way (it says so, if it has not begun), or
        between two requests. An upgraded connection goes on."""
        self._winds_down = True
        if self._exchange is not None:
            self._exchange.close_client()
        limits = self._owner.limits
        idle_seconds = limits.idle_seconds - self._deadline.left_seconds
        if self.is_idle and idle_seconds >= limits.wind_down_seconds:
            self._close()

    # -- StreamHandler ------------------------------------------------------------------

    def data_received(self, data: bytes | memoryview) -> None:
        if self._state is _State.CLOSING:
            self._stream.taken(len(data))
        elif self._state is not _State.CLOSED:
            if type(data) is not bytes:
                data = bytes(data)
            if (
                self._state is _State.HEAD
                and not self._pending
                and not self._is_advancing
                and len(data) <= MAX_HEAD_BYTES
                and data.find(b"\r\n\r\n") == len(data) - 4
            ):
                # The usual case: one head, whole and alone. `_read_head` would do the same.
                self._stream.taken(len(data))
                self._receive_head(data)
                return
            self._pending.append(data)
            self._pending_bytes += len(data)
            self._advance()

    def eof_received(self) -> None:
        if self._state is _State.CLOSED:
            return
        self._client_has_ended = True
        if self._state is _State.RAW:
            self._advance()
        elif self._state is not _State.CLOSING:
            # As Go's servers see it: who ends here does not wait for an answer.
            self._close()

    def stream_closed(self, error: StreamReset | None) -> None:
        self._over()

    def pause_writing(self) -> None:
        self.writing_is_paused = True
        if self._exchange is not None:
            self._exchange.client_paused()

    def resume_writing(self) -> None:
        self.writing_is_paused = False
        if self._exchange is not None:
            self._exchange.client_resumed()

    # -- exchange.Client ----------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self._stream.write(data)

    def exchange_can_send(self) -> None:
        self._advance()

    def exchange_answered(self, status: int) -> None:
        self._owner.answers.by_apiserver[status] += 1

    def exchange_upgraded(self) -> None:
        self._state = _State.RAW
        self._advance()

    def exchange_done(self, *, keep_alive: bool) -> None:
        self._exchange = None
        self._outgoing = None
        if not keep_alive or self._winds_down:
            self._close()
            return
        self._next_request()
        if self._pending:
            self._advance()

    def exchange_refused(self, refusal: Refusal) -> None:
        outgoing = self._outgoing
        self._exchange = None
        if outgoing is not None:
            is_open = outgoing.body is not None and not outgoing.body.is_complete
            refusal.keeps_alive = outgoing.keeps_alive and not is_open
        self._refuse(refusal)
        self._advance()

    def exchange_broken(self, reason: str) -> None:
        self.end(Code.UNREACHABLE, reason)

    # -- the way of a request -----------------------------------------------------------

    def _advance(self) -> None:
        """Pass on what can be passed on now."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self._pending:
                if self._state is _State.HEAD:
                    has_moved = self._read_head()
                elif self._state is _State.BODY:
                    has_moved = self._pass_body()
                elif self._state is _State.RAW:
                    has_moved = self._pass_raw()
                else:
                    break
                if not has_moved:
                    break
        finally:
            self._is_advancing = False
        if self._client_has_ended and self._state is _State.RAW and not self._pending:
            self._end_raw()

    def _joined(self) -> bytes:
        return self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)

    def _take(self, data: bytes, count: int) -> None:
        """`count` bytes of `data`, which is all that is pending, are passed on."""
        if count == len(data):
            self._pending.clear()
        else:
            self._pending = [data[count:]]
        self._pending_bytes = len(data) - count
        early = min(self._early_bytes, count)
        self._early_bytes -= early
        self._stream.taken(count - early)

    def _take_early(self) -> None:
        """All that is pending is the beginning of a head, and let go before the rest has come:
        a head may be longer than the stream's window."""
        late, self._early_bytes = (
            self._pending_bytes - self._early_bytes,
            self._pending_bytes,
        )
        if late:
            self._stream.taken(late)

    def _read_head(self) -> bool:
        if (
            self._head_has_begun
            and self._pending_bytes <= MAX_HEAD_BYTES
            and b"\n" not in self._pending[-1]
        ):
            self._take_early()
            return False  # the others were looked at: spare the joining
        data = self._joined()
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if end < 0:
            self._pending = [data]
            if len(data) >= MAX_HEAD_BYTES:
                limit = f"the head is longer than {MAX_HEAD_BYTES} bytes"
                self._refuse(Refusal(code=431, message=f"malformed request: {limit}"))
            elif _BARE_LF.search(data):
                message = "malformed request: a line ends without CR"
                self._refuse(Refusal(code=400, message=message))
            else:
                self._take_early()
                self._await_head()
            return False
        end += 4
        head = data if end == len(data) else data[:end]
        self._take(data, end)
        self._head_has_begun = False
        self._receive_head(head)
        return True

    def _receive_head(self, head: bytes) -> None:
        """A head has come whole, from its method to its empty line, and is taken."""
        self._deadline.clear()
        try:
            self._begin(self._translate(head))
        except Refusal as refusal:
            self._refuse(refusal, without_body=head.startswith(b"HEAD "))
        except AnotherRoute as another:
            data = b"".join([head, *self._pending])
            self._stream.taken(self._pending_bytes - self._early_bytes)
            self._over()
            another.take_over(data)

    def _await_head(self) -> None:
        """A head has begun: its time runs, whatever else of it comes."""
        if not self._head_has_begun:
            self._head_has_begun = True
            self._deadline.set(self._owner.limits.head_seconds)

    def _begin(self, outgoing: Outgoing) -> None:
        if self.not_after is not None and self._owner.now() >= self.not_after:
            raise Refusal(
                code=401,
                message=f"the client certificate expired at {self.not_after.isoformat()}; "
                "get a new kubeconfig",
            )
        self._outgoing = outgoing
        if outgoing.review is None:
            self._launch(outgoing)
        else:
            self._state = _State.REVIEW
            self._owner.ask(outgoing.review, self._review_answered)

    def _review_answered(self, refusal: Refusal | None) -> None:
        outgoing = self._outgoing
        if self._state is not _State.REVIEW or outgoing is None:
            return  # the client left meanwhile
        if refusal is None:
            self._launch(outgoing)
        else:
            refusal.keeps_alive = outgoing.keeps_alive and outgoing.body is None
            self._refuse(refusal)
        self._advance()

    def _launch(self, outgoing: Outgoing) -> None:
        body = outgoing.body
        self._state = _State.ANSWER if body is None else _State.BODY
        if body is not None and self._pending:
            # Head and body in one write.
            data = self._joined()
            try:
                passed, end = body.feed(data, 0)
            except BadBody as error:
                self._refuse_body(error)
                return
            outgoing.first_bytes += passed
            self._take(data, end)
            if body.is_complete:
                self._state = _State.ANSWER
        if self._winds_down:
            outgoing.keeps_alive = False
        upstreams = outgoing.upstreams or self._owner.pool
        assert upstreams is not None  # see RelayOwner.pool
        self._exchange = Exchange(self, upstreams, outgoing)
        self._exchange.start()

    def _pass_body(self) -> bool:
        exchange, outgoing = self._exchange, self._outgoing
        assert exchange is not None and outgoing is not None
        assert outgoing.body is not None
        if not exchange.can_send:
            return False
        data = self._joined()
        try:
            passed, end = outgoing.body.feed(data, 0)
        except BadBody as error:
            self._refuse_body(error)
            return False
        if passed:
            exchange.send(passed)
        self._take(data, end)
        if outgoing.body.is_complete:
            self._state = _State.ANSWER
        return True

    def _pass_raw(self) -> bool:
        if self._exchange is None or not self._exchange.can_send:
            return False
        data = self._joined()
        self._exchange.send(data)
        self._take(data, len(data))
        return True

    # -- endings ------------------------------------------------------------------------

    def _next_request(self) -> None:
        self._state = _State.HEAD
        self._deadline.set(self._owner.limits.idle_seconds)

    def _refuse(self, refusal: Refusal, *, without_body: bool = False) -> None:
        """Answer ourselves; the connection goes on only where that is safe."""
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            without_body = outgoing.method == b"HEAD"
        keeps_alive = refusal.keeps_alive and not (
            self._client_has_ended or self._winds_down
        )
        answer = refusal.answer(close=not keeps_alive, without_body=without_body)
        self._stream.write(answer)
        self._owner.answers.by_agent[refusal.code] += 1
        if keeps_alive:
            self._next_request()
        else:
            self._close()

    def _refuse_body(self, error: BadBody) -> None:
        message = f"malformed request body: {error}"
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abort()
        if exchange is not None and exchange.has_answered:
            self.end(Code.PROTOCOL, message)
        else:
            self._refuse(Refusal(code=400, message=message))

    def _end_raw(self) -> None:
        """The client ended its direction of an upgraded connection: so do we above.

        asyncio's TLS cannot do that alone; there the apiserver gets a moment to finish
        what it is saying, and is then cut off.
        """
        assert self._exchange is not None
        if not self._exchange.client_ended() and not self._deadline.is_set:
            self._deadline.set(self._owner.limits.raw_linger_seconds)

    def _close(self) -> None:
        """End our direction, and the stream soon after."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abort()
        self._state = _State.CLOSING
        self._outgoing = None
        untaken = self._pending_bytes - self._early_bytes
        self._pending_bytes = self._early_bytes = 0
        self._pending = []
        if untaken:
            self._stream.taken(untaken)
        self._stream.write_eof()
        self._deadline.set(self._owner.limits.linger_seconds)

    def _over(self) -> None:
        if self._state is _State.CLOSED:
            return
        self._state = _State.CLOSED
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abort()
        self._pending = []
        self._deadline.close()
        self._expiry.close()
        self._owner.relay_closed(self)

    # -- timers -------------------------------------------------------------------------

    def _client_is_late(self) -> None:
        if self._state is _State.CLOSING:
            self.end(Code.OK, "the connection was closed")
        elif self._state is _State.HEAD and self._pending:
            seconds = self._owner.limits.head_seconds
            message = f"the request's head did not come within {seconds:g} s"
            self._refuse(Refusal(code=408, message=message))
        else:
            self._close()

    def _watch_credential(self) -> None:
        if self.not_after is not None:
            left = (self.not_after - self._owner.now()).total_seconds()
            # Once a day at least: clocks are set, and machines sleep.
            self._expiry.set(min(max(left, 0.0), 86400.0))

    def _credential_ended(self) -> None:
        if self.not_after is None or self._owner.now() < self.not_after:
            self._watch_credential()
            return
        self.end(Code.REVOKED, f"the client certificate expired at {self.not_after}")
