"""Whose turn it is to shake hands: the newest caller's, and only a few at a time.

After a restart thousands of agents call at once, and each handshake costs milliseconds. To
begin all of them side by side is to finish all of them too late. So a few begin in each turn
of the event loop, which leaves room for the streams of those who are in; and the newest
first: who has waited longest has probably dialled again by now, and whoever was asked to
come back at a certain time should find us there. Callers cost little while they wait: a
socket and a task, no TLS.
"""

import asyncio

__all__ = ["MAX_HANDSHAKES", "Turns"]

# Handshakes under way: TLS without a request yet, 100 KiB each. Over a long way one takes a
# second, so this many are needed for some hundred a second.
MAX_HANDSHAKES = 1024
# That begin in one turn of the loop. Each costs 2 to 3 ms in all, so that a turn stays within
# some 10 ms, whatever happens at the door.
BEGIN_PER_TURN = 4


class Turns:
    """Await `begin`, then shake hands, then call `end`."""

    def __init__(self) -> None:
        # Who waits, the newest last. Cancelled ones are dropped when their turn comes.
        self._waiting: list[asyncio.Future[None]] = []
        # Handshakes under way.
        self.under_way = 0
        # The next turn is on its way.
        self._is_due = False

    async def begin(self) -> None:
        """Wait for a turn. Safe to cancel: then there is nothing to end."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
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
        if self._waiting and not self._is_due and self.under_way < MAX_HANDSHAKES:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._is_due = False
        begun = 0
        while (
            self._waiting and begun < BEGIN_PER_TURN and self.under_way < MAX_HANDSHAKES
        ):
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                self.under_way += 1
                begun += 1
        self._call_soon()
