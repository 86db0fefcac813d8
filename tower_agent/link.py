"""Keeps the agent connected: dials, waits for the loss, dials again by the schedule of SPEC 8.

A dial that is not connected after a second does not hold up the next one: several run side
by side, and when one is through the others are given up. One that had said HELLO by then
is not: the server may have put streams on it already. It becomes the tunnel when it is
ready, as it is the server's newest too, and the older one ends when its streams have.
After a GOAWAY the next tunnel is dialled while the old one still finishes its streams. Once
that is up, those on the old one that can end between two pieces of work do: whoever uses
them comes back over the new one.
"""

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

from shared.errors import Code
from shared.mux.session import Session
from shared.tunnel.connection import TunnelConnection
from shared.tunnel.drain import drain_tunnels
from shared.tunnel.tasks import TaskSet
from shared.wire.frames import GoAway
from shared.wire.hello import Hello
from tower_agent.dialer import DialFailed
from tower_agent.kept import KeptSession
from tower_agent.reconnect import (
    ANSWER_OVERLAP_SECONDS,
    DIAL_OVERLAP_SECONDS,
    Reconnect,
)

__all__ = ["FailureLog", "Link", "LinkEnded"]

_log = logging.getLogger(__name__)

# Dials that may be under way at once: a dial is given up after ten seconds, and a network
# that swallows packets should not make us hold ten sockets.
MAX_PARALLEL_DIALS = 3

# The same failure is logged again only after so many seconds.
REPEAT_LOG_SECONDS = 60.0
# Different failures that are remembered for that: one network has two or three.
MAX_REMEMBERED_FAILURES = 16

# How often a tunnel that another has replaced is looked at: are its streams over?
RETIRED_LOOK_SECONDS = 1.0

# After the time for a friendly end: an aborted transport is gone in a turn of the loop.
ABORT_SECONDS = 1.0

_REPLACED = "a newer tunnel of this agent took over"


# `Dialer.dial` of the newest credentials: the session to go on with, and whom to tell that the
# server is reached.
Dial = Callable[[Session | None, Callable[[], None]], Awaitable[TunnelConnection]]


class LinkEnded(Exception):
    """Dialling again is no use; the sentence says what the operator must do."""


class FailureLog:
    """Which failures are worth a line: each once a minute. Pure."""

    def __init__(self) -> None:
        # By sentence without its numbers (a clock is in some): when it was logged.
        self._logged_at: dict[str, float] = {}

    def is_due(self, sentence: str, now: float) -> bool:
        """Whether to log it; if so, not again for REPEAT_LOG_SECONDS."""
        key = re.sub(r"\d+", "#", sentence)
        if now - self._logged_at.get(key, float("-inf")) < REPEAT_LOG_SECONDS:
            return False
        if len(self._logged_at) >= MAX_REMEMBERED_FAILURES:
            self._logged_at.clear()
        self._logged_at[key] = now
        return True

    def clear(self) -> None:
        """It works again: what fails from now on is news."""
        self._logged_at.clear()


class Link:
    """One tunnel to the server, renewed for as long as `run` runs.

    Create it inside the running loop; run it once, then close it.
    """

    def __init__(
        self,
        dial: Dial,
        connected: Callable[[TunnelConnection, Hello], None],
        rng: random.Random,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        # One attempt.
        self._dial = dial
        # What was lost with the last connection, and the next one may go on with.
        self._kept = KeptSession()
        self._on_connected = connected
        self._schedule = Reconnect(self._loop.time(), rng)
        # The tunnel that new streams and reports use; None while there is none.
        self.current: TunnelConnection | None = None
        # All that are up, also those that only finish their streams.
        self._tunnels: set[TunnelConnection] = set()
        # Those of them that are looked after until their streams have ended.
        self._retired: set[TunnelConnection] = set()
        # Those that have said HELLO and not heard the server's.
        self._arriving: set[TunnelConnection] = set()
        # Dials under way.
        self._tasks = TaskSet("link")
        self._dials: set[asyncio.Task[None]] = set()
        # Set whenever something above has changed.
        self._changed = asyncio.Event()
        # Set when the server said that this agent is not to come back.
        self._refusal: str | None = None
        # Set when `run` is over: no tunnel is wanted any more.
        self._is_ended = False
        self._failures = FailureLog()

    @property
    def tunnels(self) -> list[TunnelConnection]:
        """All that are up, the current one last."""
        return sorted(self._tunnels, key=lambda tunnel: tunnel is self.current)

    # What the dispatcher hands on

    def tunnel_ready(self, connection: TunnelConnection, hello: Hello) -> None:
        self._arriving.discard(connection)
        self._tunnels.add(connection)
        if self._is_ended:
            connection.close(Code.GOING_AWAY, "the agent stops")
            return
        self._kept.went_on(connection.session)
        self.current = connection
        self._schedule.connected(self._loop.time())
        self._failures.clear()
        self._stop_dials()
        self._changed.set()
        for older in self._tunnels - self._retired - {connection}:
            _log.info("a newer tunnel takes over; the older one finishes its streams")
            self._retired.add(older)
            if not older.session.peer_draining:
                older.session.go_away(Code.REPLACED, _REPLACED)
            self._close_when_spent(older)
        self._on_connected(connection, hello)

    def going_away(self, connection: TunnelConnection, notice: GoAway) -> None:
        if connection is self.current:
            if notice.retry_after_seconds:
                self._schedule.asked(self._loop.time(), notice.retry_after_seconds)
            # Another code is no farewell but a verdict: too many sessions, a removal.
            self._leave(clean=notice.code in (Code.OK, Code.GOING_AWAY))

    def tunnel_lost(self, connection: TunnelConnection, reason: str) -> None:
        if connection in self._arriving:
            self._arriving.discard(connection)
            self._note_failure(f"the tunnel ended before it was ready: {reason}")
        else:
            self._tunnels.discard(connection)
            self._retired.discard(connection)
            _log.info("tunnel ended: %s", reason)
        if connection is self.current:
            if connection.session.detached and not self._is_ended:
                self._kept.keep(connection.session)
            self._leave(clean=False)
        elif connection.session.detached:
            # An older tunnel that only finished its streams: nobody dials for it again.
            connection.session.close(
                Code.SESSION_LOST, f"the tunnel was lost: {reason}"
            )
        self._changed.set()

    def _leave(self, *, clean: bool) -> None:
        self.current = None
        self._schedule.lost(self._loop.time(), clean=clean)
        self._changed.set()

    def _close_when_spent(self, retired: TunnelConnection) -> None:
        retired.session.wind_down()
        if retired.session.is_spent:
            retired.close(Code.REPLACED, _REPLACED)
        elif retired in self._tunnels:
            self._loop.call_later(RETIRED_LOOK_SECONDS, self._close_when_spent, retired)

    # The loop

    async def run(self) -> None:
        """Stay connected until cancelled.

        Raises:
            LinkEnded: When the server says that this agent is not to come back.
        """
        try:
            while True:
                await self._until(lambda: self.current is None)
                await self._dial_next()
        finally:
            self._is_ended = True
            self._kept.end(Code.GOING_AWAY, "the agent stops")
            await self._tasks.close()

    async def _dial_next(self) -> None:
        """Wait for the next dial's time, start it, and give it a while."""
        await self._until(
            lambda: self._is_connected or self._under_way < MAX_PARALLEL_DIALS
        )
        delay = self._schedule.delay_seconds(self._loop.time())
        await self._until(lambda: self._is_connected, delay)
        if self._is_connected:
            return
        others = self._under_way
        reached = asyncio.Event()
        task = self._tasks.start(self._attempt(reached), "dial")
        self._dials.add(task)
        task.add_done_callback(self._dial_done)

        def is_over() -> bool:
            return self._is_connected or self._under_way <= others

        await self._until(lambda: is_over() or reached.is_set(), DIAL_OVERLAP_SECONDS)
        if reached.is_set():
            await self._until(is_over, ANSWER_OVERLAP_SECONDS)

    @property
    def _is_connected(self) -> bool:
        return self.current is not None

    @property
    def _under_way(self) -> int:
        return len(self._dials) + len(self._arriving)

    async def _until(
        self, condition: Callable[[], bool], timeout_seconds: float | None = None
    ) -> None:
        """Wait until it holds or the time is up; the caller looks which."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._refusal is None and not condition():
                    self._changed.clear()
                    await self._changed.wait()
        if self._refusal is not None:
            raise LinkEnded(self._refusal)

    # Dials

    async def _attempt(self, reached: asyncio.Event) -> None:
        def note_reached() -> None:
            reached.set()
            self._changed.set()

        try:
            connection = await self._dial(self._kept.session, note_reached)
        except DialFailed as failure:
            now = self._loop.time()
            if failure.final:
                self._refusal = failure.sentence
            if failure.retry_after_seconds is not None:
                self._schedule.asked(now, failure.retry_after_seconds)
            self._note_failure(failure.sentence)
        else:
            self._arriving.add(connection)

    def _dial_done(self, task: asyncio.Task[None]) -> None:
        self._dials.discard(task)
        self._changed.set()

    def _stop_dials(self) -> None:
        for dial in self._dials:
            dial.cancel()

    def _note_failure(self, sentence: str) -> None:
        is_due = self._failures.is_due(sentence, self._loop.time())
        level = logging.WARNING if is_due else logging.DEBUG
        _log.log(level, "cannot connect: %s", sentence)

    # The end

    async def drain(self, reason: str, seconds: float) -> None:
        """Let the streams of every tunnel end within so many seconds; the others are reset.
        Call it when `run` is over; `close` follows."""
        for connection in self._arriving:
            connection.close(Code.GOING_AWAY, reason)
        cut_off = await drain_tunnels(lambda: self._tunnels, reason, seconds)
        if cut_off:
            _log.warning("%d streams were cut off after %g s", cut_off, seconds)

    async def close(self, reason: str, timeout_seconds: float) -> None:
        """Take leave of the server on every tunnel; what is not gone in time is dropped."""
        for connection in [*self._tunnels, *self._arriving]:
            connection.close(Code.GOING_AWAY, reason)
        await self._until_empty(timeout_seconds)
        for connection in [*self._tunnels, *self._arriving]:
            connection.abort(reason)
        await self._until_empty(ABORT_SECONDS)

    async def _until_empty(self, timeout_seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._tunnels or self._arriving:
                    self._changed.clear()
                    await self._changed.wait()
