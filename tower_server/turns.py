"""Whose turn it is to shake hands: the newest caller's, and only a few at a time.

After a restart thousands of agents call at once, and each handshake costs milliseconds. To
begin all of them side by side is to finish all of them too late. So a few begin in each turn
of the event loop, which leaves room for the streams of those who are in; and the newest
first: who has waited longest has probably dialled again by now, and whoever was asked to
come back at a certain time should find us there. Callers cost little while they wait: a
socket and a task, no TLS.

The newest would be whoever calls fastest. So an address that calls often stands apart, and
gets what the others leave, and a quarter at least: it may be a stranger who wants to keep
agents out, or a thousand agents behind one address.
"""

import asyncio
from collections import Counter

__all__ = ["MAX_HANDSHAKES", "Turns"]

# Handshakes under way: TLS without a request yet, 100 KiB each. Over a long way one takes a
# second, so this many are needed for some hundred a second.
MAX_HANDSHAKES = 1024
# That begin in one turn of the loop. Each costs 2 to 3 ms in all, so that a turn stays within
# some 10 ms, whatever happens at the door.
BEGIN_PER_TURN = 4
# Calls of one address in a second beyond which it stands apart.
OFTEN_PER_SECOND = 10


class Turns:
    """Await `begin`, then shake hands, then call `end`."""

    def __init__(self) -> None:
        # Who waits, the newest last: of addresses that call now and then, and often.
        # Cancelled ones are dropped when their turn comes.
        self._seldom: list[asyncio.Future[None]] = []
        self._often: list[asyncio.Future[None]] = []
        # Calls in this second, by address; and when it ends.
        self._calls: Counter[str] = Counter()
        self._second_ends = 0.0
        # Handshakes under way.
        self.under_way = 0
        # The next turn is on its way.
        self._is_due = False

    async def begin(self, source: str) -> None:
        """Wait for a turn. Safe to cancel: then there is nothing to end."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._second_ends:
            self._calls.clear()
            self._second_ends = loop.time() + 1.0
        self._calls[source] += 1
        turn = loop.create_future()
        is_often = self._calls[source] > OFTEN_PER_SECOND
        (self._often if is_often else self._seldom).append(turn)
        self._call_soon()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.end()
            raise

    def end(self) -> None:
        """The handshake is over, one way or the other."""
        self.under_way -= 1
        self._call_soon()

    def _call_soon(self) -> None:
        waiting = self._seldom or self._often
        if waiting and not self._is_due and self.under_way < MAX_HANDSHAKES:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._is_due = False
        # One of those who call often, then as many of the others as may, then what is left.
        begun = self._take(self._often, 1)
        begun += self._take(self._seldom, BEGIN_PER_TURN - begun)
        self._take(self._often, BEGIN_PER_TURN - begun)
        self._call_soon()

    def _take(self, waiting: list[asyncio.Future[None]], most: int) -> int:
        """Let so many begin, the newest first; how many there were."""
        begun = 0
        while waiting and begun < most and self.under_way < MAX_HANDSHAKES:
            turn = waiting.pop()
            if not turn.done():
                turn.set_result(None)
                self.under_way += 1
                begun += 1
        return begun
