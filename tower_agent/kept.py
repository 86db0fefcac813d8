"""The session whose connection was lost, kept for the next dial to go on with. SPEC 10."""

import asyncio

from shared.errors import Code
from shared.mux.session import Session

__all__ = ["KeptSession"]


class KeptSession:
    """At most one detached session, for as long as the server keeps its end of it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._session: Session | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def session(self) -> Session | None:
        """What the next dial may ask to go on with."""
        return self._session

    def keep(self, session: Session) -> None:
        """Keep a session whose connection is lost; an earlier one ends."""
        self.end(Code.SESSION_LOST, "a later session was lost, too")
        seconds = session.peer.resume_seconds if session.peer is not None else 0
        self._session = session
        self._deadline = self._loop.call_later(
            seconds,
            self.end,
            Code.SESSION_LOST,
            f"the tunnel was lost for over {seconds} s",
        )

    def went_on(self, session: Session) -> bool:
        """A tunnel is ready with this session: is it the one that we kept?

        If it is another one, what we kept is lost.
        """
        if self._session is not session:
            self.end(Code.SESSION_LOST, "the tunnel was lost, and a new one begun")
            return False
        self._forget()
        return True

    def end(self, code: Code, reason: str) -> None:
        """Close what is kept; its streams are told."""
        session = self._session
        self._forget()
        if session is not None:
            session.close(code, reason)

    def _forget(self) -> None:
        self._session = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
