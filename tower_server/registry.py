"""Which clusters are known, and which sessions reach them right now.

The one place that the front door, the entries, the admin API and the listener ask. The
store remembers across restarts; this holds what lives only while the process does.
Several sessions of one cluster are normal. Those of one agent process are its tunnels: each
new stream goes to the one with the fewest. Those of several processes (a rolling update,
two replicas): the newest process gets new streams, the older ones finish what they have.

Longer than our files are: who is picked and what is told of it look at the same few fields.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from certs.assertion import AgentIdentity
from certs.names import ClusterName
from shared.errors import Code
from shared.member.report import MemberReport
from shared.mux.counters import Counters
from shared.mux.readings import TunnelReading, read_sessions
from shared.mux.stream import Stream
from shared.tunnel.owner import Tunnel
from shared.wire.hello import Hello

__all__ = [
    "CONTROL_TARGET",
    "MAX_SESSIONS_PER_CLUSTER",
    "ClusterStatus",
    "LiveSession",
    "Registry",
    "TunnelStatus",
]

# What an agent opens a stream to for its reports.
CONTROL_TARGET = "control"

# Sessions of one cluster at a time: two replicas with four tunnels, each twice during a
# rolling update, and as many again that are dead but not yet noticed.
MAX_SESSIONS_PER_CLUSTER = 32


@dataclass(frozen=True, kw_only=True)
class TunnelStatus:
    """One of a cluster's sessions. Active ones get new streams; those of an older agent process
    stand by; draining ones only finish what they have."""

    state: Literal["active", "standby", "draining"]
    since: datetime
    rtt_seconds: float | None
    open_streams: int
    agent_version: str | None


@dataclass(frozen=True, kw_only=True)
class ClusterStatus:
    """The truth about one cluster, not older than the dead-peer time (5 s)."""

    name: ClusterName
    state: Literal["connected", "away", "never"]
    since: datetime | None
    rtt_seconds: float | None = None
    agent_version: str | None = None
    # What was last heard of the member itself.
    report: MemberReport = MemberReport()
    open_streams: int = 0
    sessions: int = 0
    # Each of these sessions, the oldest first.
    tunnels: tuple[TunnelStatus, ...] = ()
    member_uid: str | None = None

    @property
    def apiserver_version(self) -> str | None:
        return self.report.apiserver_version

    @property
    def apiserver_error(self) -> str | None:
        return self.report.apiserver_error


class LiveSession:
    """One agent's connection, or our own to a member, with what is known about it."""

    def __init__(
        self, identity: AgentIdentity, connection: Tunnel, hello: Hello
    ) -> None:
        # As the assertion in its upgrade proved.
        self.identity = identity
        # The one that carries it now, or did last.
        self.connection = connection
        # The agent's name and version, and where it runs, as its HELLO says. Empty if it is us.
        self.software = hello.software
        self.place, self.instance = hello.place, hello.instance
        # When it was last given a stream, as a count of its cluster's streams.
        self.picked_at = 0
        self.connected_at = datetime.now(UTC)
        # See `report`.
        self._report = MemberReport()
        # Set by the registry that it is added to: says that the report is another.
        self.when_reported: Callable[[], None] = lambda: None
        # Without an agent a session says nothing of the member: set by `Registry.reach`.
        self.reaches_member = True
        # How far away the member is, where no wire of the session's own can tell.
        self.member_rtt_seconds: float | None = None

    @property
    def cluster(self) -> ClusterName:
        return self.identity.cluster

    @property
    def report(self) -> MemberReport:
        """What was last heard of the member. Set by whoever hears it."""
        return self._report

    @report.setter
    def report(self, report: MemberReport) -> None:
        if report != self._report:
            self._report = report
            self.when_reported()

    def is_of(self, identity: AgentIdentity) -> bool:
        """Whether it belongs to the agent that has just proved this identity."""
        mine = self.identity
        # By its key: a certificate that was renewed meanwhile makes no other agent.
        return (mine.cluster, mine.public_key_pin) == (
            identity.cluster,
            identity.public_key_pin,
        )

    def is_of_place(self, other: "LiveSession") -> bool:
        """Whether another session is of the same agent in the same place."""
        return other.is_of(self.identity) and other.place == self.place

    def is_sibling_of(self, other: "LiveSession") -> bool:
        """Whether it is another session of the same agent process (or itself)."""
        return self is other or (
            self.instance != ""
            and self.instance == other.instance
            and self.is_of_place(other)
        )

    def go_on(self, connection: Tunnel) -> None:
        """Another connection carries the session now."""
        self.connection = connection
        self.connected_at = datetime.now(UTC)

    @property
    def usable(self) -> bool:
        """Whether a new stream may be opened."""
        return self.connection.usable

    @property
    def rtt_seconds(self) -> float | None:
        """A round trip to the member's end."""
        measured = self.connection.session.liveness.round_trip_seconds
        return self.member_rtt_seconds if measured is None else measured

    @property
    def control_streams(self) -> int:
        return sum(stream.target == CONTROL_TARGET for stream in self._streams())

    @property
    def user_streams(self) -> int:
        """All others: the agent's own control streams are not a user's."""
        return sum(stream.target != CONTROL_TARGET for stream in self._streams())

    def _streams(self) -> Iterable[Stream]:
        return self.connection.session.streams.values()


class _Cluster:
    """A known cluster: its sessions, oldest first, and who waits for one."""

    def __init__(self, member_uid: str | None) -> None:
        self.member_uid = member_uid
        # Also those that take no new streams and finish what they have.
        self.sessions: list[LiveSession] = []
        # When the last usable session ended; None while there is one, or never was.
        self.away_since: datetime | None = None
        # When the present run of usable sessions began.
        self.connected_since: datetime | None = None
        # The newest of all: what it said stays known while the cluster is away.
        self.last: LiveSession | None = None
        # Of all its sessions, also those that are over.
        self.counters = Counters()
        # Counts what sessions were picked for.
        self.picks = 0
        self.waiters: list[asyncio.Future[None]] = []

    def newest_usable(self) -> LiveSession | None:
        return next((s for s in reversed(self.sessions) if s.usable), None)

    def least_loaded(self) -> LiveSession | None:
        """Of the newest usable session and its siblings the one with the fewest streams; among
        equals whose turn was longest ago, so that short requests take turns."""
        newest = self.newest_usable()
        if newest is None or len(self.sessions) == 1:
            return newest
        siblings = (s for s in self.sessions if s.usable and s.is_sibling_of(newest))
        chosen = min(
            siblings,
            key=lambda s: (s.connection.session.own_stream_count, s.picked_at),
        )
        self.picks += 1
        chosen.picked_at = self.picks
        return chosen

    def tunnels(self) -> tuple[TunnelStatus, ...]:
        """How each session stands, the oldest first."""
        newest = self.newest_usable()

        def state_of(session: LiveSession) -> Literal["active", "standby", "draining"]:
            if newest is None or not session.usable:
                return "draining"
            return "active" if session.is_sibling_of(newest) else "standby"

        return tuple(
            TunnelStatus(
                state=state_of(session),
                since=session.connected_at,
                rtt_seconds=session.rtt_seconds,
                open_streams=session.user_streams,
                agent_version=session.software or None,
            )
            for session in self.sessions
        )

    def newest_reaching(self) -> LiveSession | None:
        """The newest usable one, if the member is at its other end."""
        newest = self.newest_usable()
        return newest if newest is not None and newest.reaches_member else None

    def reach_changed(self, was_reached: bool, at: datetime) -> None:
        """A session has come, or one that was here has found or lost its member."""
        if self.newest_reaching() is None:
            self.away_since = self.away_since or at
        elif not was_reached:
            self.connected_since, self.away_since = at, None

    def note_absence(self) -> None:
        if self.away_since is None and self.newest_reaching() is None:
            self.away_since = datetime.now(UTC)

    def wake(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


class Registry:
    """Known clusters and their live sessions."""

    def __init__(self) -> None:
        self._clusters: dict[ClusterName, _Cluster] = {}
        # Told when a cluster is cut off: they end what is not a live session.
        self._when_cut: list[Callable[[ClusterName, Code, str], None]] = []
        # Told whose status is another by now.
        self._listeners: list[Callable[[ClusterName], None]] = []

    def listen(self, listener: Callable[[ClusterName], None]) -> None:
        """Call this with the name of each cluster whose status changes in more than numbers."""
        self._listeners.append(listener)

    def changed(self, name: ClusterName) -> None:
        """Something about a cluster is other than before: a session's report, for one."""
        for listener in self._listeners:
            listener(name)

    # What is known

    def know(self, name: ClusterName, member_uid: str | None) -> None:
        """Add a cluster, or renew what is known of it."""
        cluster = self._clusters.setdefault(name, _Cluster(member_uid))
        if member_uid and member_uid != cluster.member_uid:
            cluster.member_uid = member_uid
            self.changed(name)

    def forget(self, name: ClusterName) -> None:
        """The cluster is removed: it has no name here any more. `cut` its sessions first."""
        cluster = self._clusters.pop(name, None)
        if cluster is not None:
            cluster.wake()  # there is nothing to wait for
            self.changed(name)

    def knows(self, name: str) -> bool:
        return name in self._clusters

    # Sessions

    def add(self, session: LiveSession) -> bool:
        """Take in a session that is ready; False when its cluster is gone by now."""
        cluster = self._clusters.get(session.cluster)
        if cluster is None:
            return False
        was_reached = cluster.newest_reaching() is not None
        cluster.sessions.append(session)
        cluster.counters.take_over(session.connection.session)
        cluster.last = session
        session.when_reported = lambda: self.changed(session.cluster)
        cluster.reach_changed(was_reached, session.connected_at)
        while len(cluster.sessions) > MAX_SESSIONS_PER_CLUSTER:
            oldest = cluster.sessions.pop(0)
            oldest.connection.close(Code.REPLACED, "too many sessions of this cluster")
        cluster.wake()
        self.changed(session.cluster)
        return True

    def reach(self, session: LiveSession, *, reaches: bool) -> None:
        """Whether a session without an agent has its member at the other end."""
        cluster = self._clusters.get(session.cluster)
        was_reached = cluster is not None and cluster.newest_reaching() is not None
        session.reaches_member = reaches
        if cluster is not None and session in cluster.sessions:
            cluster.reach_changed(was_reached, datetime.now(UTC))
            self.changed(session.cluster)

    def renewed(self, identity: AgentIdentity) -> None:
        """An agent has a new certificate for its key; its sessions are the same agent's."""
        cluster = self._clusters.get(identity.cluster)
        if cluster is None:
            return
        if cluster.last is not None and cluster.last.is_of(identity):
            cluster.last.identity = identity
        for session in cluster.sessions:
            if session.is_of(identity):
                session.identity = identity
        self.changed(identity.cluster)

    def certificate_ends_at(self, name: ClusterName) -> datetime | None:
        """When the certificate ends that the cluster's newest agent has shown; None: it has not."""
        cluster = self._clusters.get(name)
        if cluster is None or cluster.last is None:
            return None
        return cluster.last.identity.not_after

    def left(self, session: LiveSession) -> None:
        """The session takes no new streams any more; it may still have some."""
        cluster = self._clusters.get(session.cluster)
        if cluster is not None and session in cluster.sessions:
            cluster.note_absence()
            self.changed(session.cluster)

    def remove(self, session: LiveSession) -> None:
        """The session is over. Harmless for one that is not here."""
        cluster = self._clusters.get(session.cluster)
        if cluster is not None and session in cluster.sessions:
            cluster.sessions.remove(session)
            cluster.note_absence()
            self.changed(session.cluster)

    def pick(self, name: ClusterName) -> LiveSession | None:
        """The session for a new stream: a usable one of the newest agent process."""
        cluster = self._clusters.get(name)
        return cluster.least_loaded() if cluster is not None else None

    async def wait_for(
        self, name: ClusterName, timeout_seconds: float
    ) -> LiveSession | None:
        """`pick`, waiting up to a time for an agent to come back. Safe to cancel."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while True:
            cluster = self._clusters.get(name)
            session = self.pick(name)
            left_seconds = deadline - loop.time()
            if session is not None or cluster is None or left_seconds <= 0:
                return session
            waiter: asyncio.Future[None] = loop.create_future()
            cluster.waiters.append(waiter)
            try:
                await asyncio.wait((waiter,), timeout=left_seconds)
            finally:
                cluster.waiters.remove(waiter)

    async def cut(self, name: ClusterName, code: Code, reason: str) -> None:
        """End all sessions of a cluster, telling its agents why."""
        cluster = self._clusters.get(name)
        for session in list(cluster.sessions) if cluster is not None else ():
            session.connection.close(code, reason)
        for callback in self._when_cut:
            callback(name, code, reason)

    def when_cut(self, callback: Callable[[ClusterName, Code, str], None]) -> None:
        """Call this, too, whenever a cluster is cut."""
        self._when_cut.append(callback)

    def sessions_of(self, name: ClusterName) -> list[LiveSession]:
        """A cluster's live sessions, the oldest first."""
        cluster = self._clusters.get(name)
        return list(cluster.sessions) if cluster is not None else []

    def session_of(
        self, identity: AgentIdentity, session_id: str
    ) -> LiveSession | None:
        """The live session with this id, if it belongs to the agent of this identity."""
        for session in self.sessions_of(identity.cluster):
            is_it = session.connection.session.hello.session_id == session_id
            if is_it and session.is_of(identity):
                return session
        return None

    def sessions(self) -> Iterable[LiveSession]:
        """Every live session, of every cluster."""
        for cluster in list(self._clusters.values()):
            yield from list(cluster.sessions)

    # Status

    def status(self, name: ClusterName) -> ClusterStatus | None:
        """What to tell an admin about one cluster; None for an unknown one."""
        cluster = self._clusters.get(name)
        if cluster is None:
            return None
        newest = cluster.newest_reaching()
        streams = sum(session.user_streams for session in cluster.sessions)
        if newest is None:
            return self._away(name, cluster, streams)
        return ClusterStatus(
            name=name,
            state="connected",
            since=cluster.connected_since,
            rtt_seconds=newest.rtt_seconds,
            agent_version=newest.software or None,
            report=newest.report,
            open_streams=streams,
            sessions=len(cluster.sessions),
            tunnels=cluster.tunnels(),
            member_uid=cluster.member_uid,
        )

    def _away(
        self, name: ClusterName, cluster: _Cluster, streams: int
    ) -> ClusterStatus:
        last = cluster.last
        if last is not None:
            cluster.note_absence()  # a session that we are closing has said nothing yet
        return ClusterStatus(
            name=name,
            state="never" if last is None else "away",
            since=cluster.away_since,
            agent_version=last.software or None if last else None,
            report=self._last_report(cluster),
            open_streams=streams,
            sessions=len(cluster.sessions),
            tunnels=cluster.tunnels(),
            member_uid=cluster.member_uid,
        )

    @staticmethod
    def _last_report(cluster: _Cluster) -> MemberReport:
        """What stays known of a member that is away. Its trouble is news only if we still ask."""
        if cluster.newest_usable() is None and cluster.last is not None:
            return replace(cluster.last.report, apiserver_error=None)
        return cluster.last.report if cluster.last is not None else MemberReport()

    def readings(self) -> dict[str, TunnelReading]:
        """What goes through the tunnels of every known cluster, by name."""
        return {
            name: self._reading(cluster)
            for name, cluster in sorted(self._clusters.items())
        }

    @staticmethod
    def _reading(cluster: _Cluster) -> TunnelReading:
        reading = read_sessions(
            (live.connection.session for live in cluster.sessions),
            cluster.counters,
            uncounted_target=CONTROL_TARGET,
        )
        # What only the sessions' owner knows: whom they lead to, and how far that is.
        reaching = [live for live in cluster.sessions if live.reaches_member]
        rtts = [live.rtt_seconds for live in reaching if live.rtt_seconds is not None]
        return replace(
            reading,
            sessions=len(reaching),
            rtt_seconds=rtts[-1] if rtts else None,
        )

    def all(self) -> list[ClusterStatus]:
        """The status of every known cluster, by name."""
        statuses = (self.status(name) for name in sorted(self._clusters))
        return [status for status in statuses if status is not None]
