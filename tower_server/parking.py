"""Sessions whose connection was lost, kept until their agent comes back for them. SPEC 10.

A parked session has its streams, what they have queued, and every message that the agent
may not have. Nobody can take it but the agent that it belongs to: the upgrade has proved
the same cluster and the same certificate. What is not taken in time is closed, and its
streams are told why.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from certs.assertion import AgentIdentity
from shared.errors import Code
from shared.mux.session import Session
from tower_server.registry import MAX_SESSIONS_PER_CLUSTER, LiveSession

__all__ = ["MAX_PARKED_PER_CLUSTER", "Parked", "Parking", "ParkingReading"]

_log = logging.getLogger(__name__)

# As many as a cluster may have live ones; more can only be an agent that goes wrong.
MAX_PARKED_PER_CLUSTER = MAX_SESSIONS_PER_CLUSTER


# Cluster, pin of the agent's key, session id.
_Key = tuple[str, str, str]


def _key(session_id: str, identity: AgentIdentity) -> _Key:
    return identity.cluster, identity.public_key_pin, session_id


@dataclass(frozen=True)
class Parked:
    """A detached session and whose it is."""

    live: LiveSession
    session: Session
    deadline: asyncio.TimerHandle


@dataclass(frozen=True, kw_only=True)
class ParkingReading:
    """How many sessions wait at one moment, and what became of the others."""

    parked: int
    resumed: int
    expired: int


class Parking:
    """Detached sessions by their id. Create it inside the running loop."""

    def __init__(self, resume_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.resume_seconds = resume_seconds
        # By whose they are, and their id: an agent that says another's id finds nothing.
        self._parked: dict[_Key, Parked] = {}
        # Sessions that went on, and those that nobody came back for; for people.
        self.resumed = 0
        self.expired = 0

    def __len__(self) -> int:
        return len(self._parked)

    def read(self) -> ParkingReading:
        return ParkingReading(
            parked=len(self), resumed=self.resumed, expired=self.expired
        )

    def park(self, live: LiveSession, session: Session) -> None:
        """Keep a session; the oldest of its cluster makes room if there are too many."""
        key = _key(session.hello.session_id, live.identity)
        same = [p for p in self._parked.values() if p.live.cluster == live.cluster]
        if len(same) >= MAX_PARKED_PER_CLUSTER:
            self._close(same[0], Code.LIMIT, "too many sessions wait for their agent")
        deadline = self._loop.call_later(self.resume_seconds, self._expire, key)
        self._parked[key] = Parked(live, session, deadline)

    def take(
        self, session_id: str, identity: AgentIdentity, received: int
    ) -> Parked | None:
        """Give a session to the agent that it belongs to; None if there is none for it.

        Raises:
            PeerProtocolError: If what the agent says to have received cannot be; the session
                stays for one that knows better.
        """
        key = _key(session_id, identity)
        parked = self._parked.get(key)
        if parked is None:
            return None
        parked.session.replay.check_resume(received)
        del self._parked[key]
        parked.deadline.cancel()
        self.resumed += 1
        return parked

    def end(
        self, matching: Callable[[LiveSession], bool], code: Code, reason: str
    ) -> None:
        """Close those that match; their streams are told."""
        for parked in [p for p in self._parked.values() if matching(p.live)]:
            self._close(parked, code, reason)

    def _expire(self, key: _Key) -> None:
        self.expired += 1
        parked = self._parked[key]
        _log.info(
            "%s: the agent did not come back for its session", parked.live.cluster
        )
        self._close(
            parked,
            Code.SESSION_LOST,
            f"the tunnel was lost for over {self.resume_seconds:g} s",
        )

    def _close(self, parked: Parked, code: Code, reason: str) -> None:
        self._parked.pop(
            _key(parked.session.hello.session_id, parked.live.identity), None
        )
        parked.deadline.cancel()
        parked.session.close(code, reason)
