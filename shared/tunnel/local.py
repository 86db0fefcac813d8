"""A tunnel without a wire: a session whose two ends are in this process.

What the server does for a member that it reaches by itself is what an agent would do, so it
is done at the far end of a session, too. Whoever opens streams sees no difference: the same
windows, resets, limits and counters, only no connection that could be lost, and nobody on
the way. Messages go from core to core as they are, once a turn of the event loop.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable

from shared.errors import Code, InvalidState, PeerProtocolError
from shared.mux.budget import WindowBudget
from shared.mux.idle import IDLE_SECONDS
from shared.mux.session import Role, Session
from shared.mux.stream import Stream
from shared.mux.windows import INITIAL_WINDOW_BYTES
from shared.wire.frames import GoAway
from shared.wire.hello import Hello

__all__ = ["LocalTunnel"]

_log = logging.getLogger(__name__)

# How often streams at rest are looked for, which hold memory that others could use.
LOOK_FOR_REST_EVERY_SECONDS = IDLE_SECONDS / 2

# How often streams are asked to end between two pieces of work, once we drain.
WIND_DOWN_EVERY_SECONDS = 0.1


class LocalTunnel:
    """The near end; a `shared.tunnel.owner.Tunnel`."""

    def __init__(
        self,
        open_target: Callable[[Stream], None],
        stream_accepted: Callable[[Stream], None],
        *,
        budget: WindowBudget | None = None,
    ) -> None:
        """Begin; it is usable at once.

        Args:
            open_target: The far end: gives a stream its handler, or resets it.
            stream_accepted: The near end: the far end has reached a stream's target.
        """
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        # Messages wait for the next turn of the loop.
        self._flush_due = False
        # Runs while the near end drains.
        self._winding_down: asyncio.TimerHandle | None = None
        # Runs while there are streams.
        self._looking_for_rest: asyncio.TimerHandle | None = None
        hello = Hello(
            session_id=secrets.token_hex(16),
            window_bytes=INITIAL_WINDOW_BYTES,
            software="",  # there is no other program
        )
        near, far = (
            _End(self._output_ready, stream_accepted=stream_accepted),
            _End(
                self._output_ready,
                open_target=open_target,
                going_away=self._wind_down,
            ),
        )
        self.session = Session(Role.SERVER, hello, near, now, budget=budget)
        self._far = Session(Role.AGENT, hello, far, now, budget=budget)
        # Both greet each other before anybody can open a stream.
        self._flush()

    @property
    def closed(self) -> bool:
        return self.session.closed

    @property
    def usable(self) -> bool:
        """Whether a new stream may be opened."""
        return not self.session.closed and not self.session.draining

    def close(self, code: Code, reason: str) -> None:
        """End the session; both ends of each stream are told why. Idempotent."""
        self._stop_winding_down()
        if self._looking_for_rest is not None:
            self._looking_for_rest.cancel()
            self._looking_for_rest = None
        self.session.close(code, reason)
        self._far.close(code, reason)

    def abort(self, reason: str) -> None:
        """The same, where there is nobody to be polite to."""
        self.close(Code.SESSION_LOST, reason)

    def release(self, reason: str) -> Session:
        """Nobody can take this session over: its other end is here."""
        raise InvalidState(f"a session without a connection is not resumed: {reason}")

    # The way of the messages

    def _output_ready(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Pass on what both ends have to say now; what that leads to has the next turn."""
        self._flush_due = False
        now = self._loop.time()
        try:
            for sender, receiver in (
                (self._far, self.session),
                (self.session, self._far),
            ):
                messages = []
                while sender.wants_to_send and (message := sender.data_to_send(now)):
                    messages.append(message)
                for message in messages:
                    receiver.receive_message(message, now)
        except PeerProtocolError as error:
            # Both ends are ours, so this is a bug of ours.
            _log.exception("a session within this process broke")
            self.close(Code.INTERNAL, f"the server made a mistake: {error}")
            return
        if self.session.wants_to_send or self._far.wants_to_send:
            self._output_ready()
        if self._looking_for_rest is None and self.session.streams:
            self._looking_for_rest = self._loop.call_later(
                LOOK_FOR_REST_EVERY_SECONDS, self._look_for_rest
            )

    def _look_for_rest(self) -> None:
        self._looking_for_rest = None
        now = self._loop.time()
        for end in (self.session, self._far):
            end.return_idle_credit(now)
        self._output_ready()  # also goes on looking

    def _wind_down(self) -> None:
        self._far.wind_down()
        self._winding_down = self._loop.call_later(
            WIND_DOWN_EVERY_SECONDS, self._wind_down
        )

    def _stop_winding_down(self) -> None:
        if self._winding_down is not None:
            self._winding_down.cancel()
            self._winding_down = None


class _End:
    """What the session at one end tells us; a `SessionHandler`."""

    def __init__(
        self,
        output_ready: Callable[[], None],
        *,
        open_target: Callable[[Stream], None] | None = None,
        stream_accepted: Callable[[Stream], None] | None = None,
        going_away: Callable[[], None] | None = None,
    ) -> None:
        self.output_ready = output_ready
        self._open_target = open_target
        self._stream_accepted = stream_accepted
        self._going_away = going_away

    def session_ready(self, hello: Hello) -> None:
        pass

    def stream_opened(self, stream: Stream) -> None:
        if self._open_target is None:
            stream.reset(Code.REFUSED, "there is nothing to be opened at this end")
        else:
            self._open_target(stream)

    def stream_accepted(self, stream: Stream) -> None:
        if self._stream_accepted is not None:
            self._stream_accepted(stream)

    def going_away(self, notice: GoAway) -> None:
        if self._going_away is not None:
            self._going_away()

    def stream_failed(self, stream: Stream, error: Exception) -> None:
        _log.error("stream %s failed", stream, exc_info=error)
