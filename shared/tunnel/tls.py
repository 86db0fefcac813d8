"""TLS inside a stream: ciphertext on one side, plaintext on the other, either role.

`TlsEnd` sits between two streams. Below, it is the `StreamHandler` of a stream that
carries ciphertext; above, it is the `ByteStream` that a plaintext handler writes to:

    ciphertext stream  ──data_received──▶  TlsEnd  ──data_received──▶  plaintext handler
                       ◀──write, taken───          ◀──write, taken───

Everything is a call that happens at once: no task, no queue, no await. Memory is
bounded in both directions. Inwards, ciphertext stays charged to the peer's window until
the plaintext that came out of it was taken, and decrypting stops while too much of that
is untaken. Outwards, `pause_writing` is handed up.

What arrives in one call goes up in one call, and what the handler writes meanwhile goes
down in one write. Somewhat longer than our files are: it is one state machine.
"""

import ssl
from collections import deque
from collections.abc import Callable
from typing import Protocol

from shared.errors import Code, InvalidState, StreamReset
from shared.streams import ByteStream, StreamHandler, wind_down

__all__ = [
    "HANDSHAKE_TIMEOUT_SECONDS",
    "MAX_HALF_OPEN_HANDSHAKES",
    "CallLater",
    "HandshakeGate",
    "OnHandshake",
    "Timer",
    "TlsEnd",
]

# A TLS 1.3 handshake is one round trip and two signatures; a peer that needs longer is
# broken or hostile. Before it is done nobody is authenticated (design: 10 s).
HANDSHAKE_TIMEOUT_SECONDS = 10.0

# Strangers can start handshakes, and each costs a signature and some 50 KiB: so only
# this many at a time in one process (design: 64).
MAX_HALF_OPEN_HANDSHAKES = 64

# Plaintext that the handler has not taken yet, beyond which we stop decrypting. The
# ciphertext behind it waits in the peer's window. One window's initial size.
MAX_UNTAKEN_BYTES = 256 * 1024

# OpenSSL hands out at most one record a call and a record holds at most this much, so
# asking for more only allocates more (measured: 16 KiB to 256 KiB make no difference).
RECORD_BYTES = 16 * 1024

# A memory BIO keeps the largest size that it ever had, for as long as its connection
# lives: a list of a megabyte left 300 KiB with each idle connection. So ciphertext passes
# through it in slices of this size (two records), for one hundredth more CPU.
SLICE_BYTES = 32 * 1024

# After a failed handshake the alert that says why is on its way to the peer; a reset in
# the same breath could overtake it.
LINGER_SECONDS = 2.0


class Timer(Protocol):
    """What `call_later` gives back: asyncio.TimerHandle, or a test's own."""

    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Timer]
OnHandshake = Callable[[ByteStream, ssl.SSLObject], StreamHandler]


class HandshakeGate:
    """Counts handshakes that are under way, so that strangers cannot start any number."""

    def __init__(self, max_half_open: int = MAX_HALF_OPEN_HANDSHAKES) -> None:
        self.max_half_open = max_half_open
        self.half_open = 0

    def enter(self) -> bool:
        """Take a place; False when all are taken."""
        if self.half_open >= self.max_half_open:
            return False
        self.half_open += 1
        return True

    def leave(self) -> None:
        """Give the place back: the handshake is done, one way or the other."""
        self.half_open -= 1


class TlsEnd:
    """One end of TLS over a `ByteStream`; itself a `StreamHandler` and a `ByteStream`.

    Give it to the ciphertext stream as its handler, then call `start` with that stream.
    When the handshake is done, `on_handshake(plaintext_stream, ssl_object)` returns the
    plaintext handler. It refuses the peer by raising StreamReset, whose code and reason
    the peer gets, or ValueError, which becomes Code.REFUSED.

    `on_failed` is called, at most once, with a sentence when no handshake comes about.
    """

    __slots__ = (
        "_call_later",
        "_charged_bytes",
        "_closed_below",
        "_eof_below",
        "_eof_received",
        "_eof_sent",
        "_failed",
        "_gate",
        "_handler",
        "_handshake_timeout_seconds",
        "_holds_place",
        "_incoming",
        "_on_failed",
        "_on_handshake",
        "_outgoing",
        "_pumping",
        "_ssl",
        "_stream",
        "_timer",
        "_untaken_bytes",
        "_waiting",
        "_waiting_bytes",
        "_write_paused",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        on_handshake: OnHandshake,
        call_later: CallLater,
        server_hostname: str | None = None,
        on_failed: Callable[[str], None] | None = None,
        gate: HandshakeGate | None = None,
        handshake_timeout_seconds: float = HANDSHAKE_TIMEOUT_SECONDS,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        self._on_handshake = on_handshake
        self._on_failed = on_failed
        self._call_later = call_later
        self._handshake_timeout_seconds = handshake_timeout_seconds
        self._gate = gate
        # Whether this end has taken a place in the gate and not given it back.
        self._holds_place = False
        # Set by `start`; None again when the ciphertext stream is over for us.
        self._stream: ByteStream | None = None
        # The plaintext side. Set when the handshake is done.
        self._handler: StreamHandler | None = None
        # The handshake's deadline, later the linger after a failure.
        self._timer: Timer | None = None
        # The handshake failed: discard what comes until the stream is gone.
        self._failed = False
        # Guards _pump against the handler's own calls from inside of it.
        self._pumping = False
        # Ciphertext that arrived and has not been given to OpenSSL yet, in order.
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        # Ciphertext that arrived and has not been credited to the peer yet.
        self._charged_bytes = 0
        # Plaintext that the handler got and has not taken yet.
        self._untaken_bytes = 0
        # We sent close_notify / the peer's was handed up as eof_received.
        self._eof_sent = False
        self._eof_received = False
        # No more ciphertext will come; some may still wait to be decrypted.
        self._eof_below = False
        # The ciphertext stream ended well below while plaintext is still to be handed up.
        self._closed_below = False
        # The ciphertext stream asked us to pause before there was a handler to tell.
        self._write_paused = False

    def start(self, stream: ByteStream) -> None:
        """Begin on this ciphertext stream; a client sends its hello at once."""
        self._stream = stream
        self._holds_place = self._gate is not None and self._gate.enter()
        if self._gate is not None and not self._holds_place:
            self._refuse(Code.LIMIT, "too many TLS handshakes at once; try again later")
            return
        self._timer = self._call_later(
            self._handshake_timeout_seconds, self._handshake_timed_out
        )
        self._pump()

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """The TLS state: version, peer certificate. Only to look at."""
        return self._ssl

    # -- the ciphertext stream's handler ------------------------------------------------

    def data_received(self, data: bytes | memoryview) -> None:
        if self._stream is None or self._failed or self._eof_received:
            return
        count = len(data)
        self._charged_bytes += count
        if count > SLICE_BYTES or self._has_ciphertext:
            self._waiting.append(memoryview(data))
            self._waiting_bytes += count
        else:
            self._incoming.write(data)
        self._pump()

    def eof_received(self) -> None:
        if self._stream is None or self._failed:
            return
        self._eof_below = True
        self._pump()

    def stream_closed(self, error: StreamReset | None) -> None:
        if self._stream is None:
            return
        if error is None and self._handler is not None and not self._failed:
            self._closed_below = True
            self._pump()
            return
        if self._handler is None and not self._failed and self._on_failed is not None:
            why = "" if error is None else f": {error}"
            self._on_failed(f"the stream ended during the TLS handshake{why}")
        self._finish(error)

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._handler is not None:
            self._handler.resume_writing()

    def wind_down(self) -> None:
        """What is served above may end when that does no harm (shared.streams.WindsDown)."""
        wind_down(self._handler)

    # -- the plaintext handler's stream -------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        if self._stream is None or self._handler is None and not self._pumping:
            return
        if self._eof_sent or not data:
            return
        try:
            if len(data) > SLICE_BYTES:
                data = self._write_slices(memoryview(data))
            written = self._ssl.write(data)
            while written < len(data):
                written += self._ssl.write(memoryview(data)[written:])
        except ssl.SSLError as error:
            self._break(error)
            return
        if not self._pumping and self._stream is not None:
            self._stream.write(self._outgoing.read())

    def write_eof(self) -> None:
        """Send close_notify and end our direction. What the peer still sends arrives."""
        if self._stream is None or self._eof_sent:
            return
        self._eof_sent = True
        # SSL_shutdown also reads, and what it reads is lost: so hide what has arrived.
        waiting = self._incoming.read()
        try:
            self._ssl.unwrap()
        except ssl.SSLError:
            pass  # the peer's close_notify has not come yet; eof_received tells
        if waiting:
            self._incoming.write(waiting)
        self._flush()
        if self._stream is not None:
            self._stream.write_eof()

    def reset(self, code: Code, reason: str) -> None:
        stream = self._stream
        self._forget()
        if stream is not None:
            stream.reset(code, reason)

    def taken(self, count: int) -> None:
        self._untaken_bytes -= count
        if self._untaken_bytes < 0:
            raise InvalidState(f"taken {-self._untaken_bytes} bytes more than received")
        if self._pumping or self._stream is None:
            return
        if self._has_ciphertext:
            self._pump()
        else:
            self._credit()

    # -- the way of the bytes -----------------------------------------------------------

    def _pump(self) -> None:
        """Do all that what has arrived allows, then send and credit once."""
        if self._pumping or self._stream is None:
            return
        self._pumping = True
        try:
            if self._handler is not None or self._handshake():
                self._decrypt()
        finally:
            self._pumping = False
        if self._outgoing.pending:
            self._flush()
        self._credit()
        if self._eof_received and self._closed_below:
            self._finish(None)

    def _handshake(self) -> bool:
        try:
            while not self._step():
                if not self._feed():
                    if self._eof_below:
                        self._fail("the peer left during the TLS handshake")
                    return False
        except ssl.SSLError as error:  # includes certificate verification
            self._fail(f"TLS handshake failed: {error.reason or error}")
            return False
        self._leave_handshake()
        try:
            handler = self._on_handshake(self, self._ssl)
        except StreamReset as refusal:
            self._refuse(refusal.code, refusal.reason)
            return False
        except ValueError as refusal:
            self._refuse(Code.REFUSED, str(refusal))
            return False
        if self._stream is None:  # it reset the stream itself
            return False
        self._handler = handler
        if self._write_paused:
            handler.pause_writing()
        return True

    def _step(self) -> bool:
        """Go on with the handshake; True when it is done, False when more must come."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def _decrypt(self) -> None:
        while self._stream is not None and not self._eof_received:
            pieces: list[bytes] = []
            room = MAX_UNTAKEN_BYTES - self._untaken_bytes
            ended = False
            try:
                while room > 0 and (self._incoming.pending or self._feed()):
                    piece = self._ssl.read(RECORD_BYTES)
                    if not piece:
                        ended = True
                        break
                    pieces.append(piece)
                    room -= len(piece)
            except ssl.SSLWantReadError:
                pass  # that was the beginning of a record
            except ssl.SSLZeroReturnError:
                ended = True
            except ssl.SSLError as error:
                self._hand_up(pieces)
                self._break(error)
                return
            if pieces:
                self._hand_up(pieces)
            if ended:
                self._peer_ended()
            elif not (pieces or (room > 0 and self._waiting)):
                break
            elif not self._has_ciphertext:
                break
        if self._eof_below and not self._has_ciphertext:
            self._truncated()

    def _hand_up(self, pieces: list[bytes]) -> None:
        if pieces and self._handler is not None:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._untaken_bytes += len(data)
            self._handler.data_received(data)

    def _peer_ended(self) -> None:
        # The handler may have reset us while it got the last bytes.
        if self._stream is not None and self._handler is not None:
            self._eof_received = True
            self._handler.eof_received()

    @property
    def _has_ciphertext(self) -> bool:
        """Whether some is here that has not been decrypted."""
        return bool(self._incoming.pending or self._waiting)

    def _feed(self) -> bool:
        """Give OpenSSL the next slice of what waits; False when nothing does."""
        if not self._waiting:
            return False
        first = self._waiting.popleft()
        if len(first) > SLICE_BYTES:
            self._waiting.appendleft(first[SLICE_BYTES:])
            first = first[:SLICE_BYTES]
        self._waiting_bytes -= self._incoming.write(first)
        return True

    def _write_slices(self, data: memoryview) -> memoryview:
        """Encrypt and send all but the last slice, which is returned."""
        while len(data) > SLICE_BYTES:
            data = data[self._ssl.write(data[:SLICE_BYTES]) :]
            self._flush()
        return data

    def _flush(self) -> None:
        if self._outgoing.pending and self._stream is not None:
            self._stream.write(self._outgoing.read())

    def _credit(self) -> None:
        """Let the peer send as much as no longer lies here in any form.

        Plaintext is never longer than its ciphertext, so what is untaken is an honest
        measure of the ciphertext that it came from.
        """
        if self._stream is None or self._failed:
            return
        held = self._incoming.pending + self._waiting_bytes + self._untaken_bytes
        free = self._charged_bytes - held
        if free > 0:
            self._charged_bytes -= free
            self._stream.taken(free)

    # -- endings ------------------------------------------------------------------------

    def _truncated(self) -> None:
        """The ciphertext ended without close_notify."""
        if self._eof_received or self._stream is None:
            return
        if self._eof_sent:
            # Nothing of ours is missing, and most clients leave this way.
            self._peer_ended()
            return
        self._give_up(Code.CANCELLED, "the peer left without close_notify")

    def _break(self, error: ssl.SSLError) -> None:
        self._flush()  # an alert, if OpenSSL wrote one
        self._give_up(Code.PROTOCOL, f"TLS failed: {error.reason or error}")

    def _give_up(self, code: Code, reason: str) -> None:
        if self._stream is not None:
            self._stream.reset(code, reason)
        self._finish(StreamReset(code, reason))

    def _finish(self, error: StreamReset | None) -> None:
        handler = self._handler
        self._forget()
        if handler is not None:
            handler.stream_closed(error)

    def _forget(self) -> None:
        self._leave_handshake()
        self._stream = None
        self._handler = None

    def _leave_handshake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._gate is not None and self._holds_place:
            self._holds_place = False
            self._gate.leave()

    def _handshake_timed_out(self) -> None:
        self._timer = None
        seconds = self._handshake_timeout_seconds
        self._refuse(Code.TIMEOUT, f"no TLS handshake within {seconds:g} s")

    def _refuse(self, code: Code, reason: str) -> None:
        if self._on_failed is not None:
            self._on_failed(reason)
        self._flush()
        self.reset(code, reason)

    def _fail(self, reason: str) -> None:
        """Let the alert out, end our direction, and drop the stream a little later."""
        self._leave_handshake()
        self._failed = True
        if self._on_failed is not None:
            self._on_failed(reason)
        self._flush()
        if self._stream is not None:
            self._stream.write_eof()
            self._timer = self._call_later(
                LINGER_SECONDS, lambda: self.reset(Code.PROTOCOL, reason)
            )
