"""A registry without sessions: tests say what state each cluster is in, and see what was cut."""

from certs.names import ClusterName
from shared.errors import Code
from shared.member.report import MemberReport
from shared.mux.counters import Counters
from shared.mux.readings import TunnelReading
from tower_server.registry import ClusterStatus

__all__ = ["FakeRegistry"]


NO_TRAFFIC = TunnelReading(
    sessions=0,
    rtt_seconds=None,
    open_streams=0,
    stalled_streams=0,
    queued_bytes=0,
    unread_bytes=0,
    window_bytes=0,
    kept_bytes=0,
    counters=Counters(),
)


class FakeRegistry:
    """What `tower_server.admin.Sessions` asks for, from a dictionary."""

    def __init__(self) -> None:
        self.statuses: dict[str, ClusterStatus] = {}
        self.traffic: dict[str, TunnelReading] = {}
        # (cluster, code, reason) of each cut, in order.
        self.cuts: list[tuple[str, Code, str]] = []
        self.forgotten: list[str] = []

    def connected(self, name: str, **fields: object) -> None:
        """Make a cluster connected; `fields` are those of ClusterStatus and MemberReport."""
        reported = {k: fields.pop(k) for k in set(fields) & set(vars(MemberReport()))}
        known: dict[str, object] = {
            "since": None,
            "sessions": 1,
            "report": MemberReport(**reported),
            **fields,
        }
        self.statuses[name] = ClusterStatus(
            name=ClusterName(name), state="connected", **known
        )

    def away(self, name: str, **fields: object) -> None:
        """Make a cluster away."""
        self.statuses[name] = ClusterStatus(
            name=ClusterName(name), state="away", **{"since": None, **fields}
        )

    def readings(self) -> dict[str, TunnelReading]:
        """Of each cluster that has a status; `traffic` sets them, else there was none."""
        return {name: self.traffic.get(name, NO_TRAFFIC) for name in self.statuses}

    def status(self, name: ClusterName) -> ClusterStatus | None:
        return self.statuses.get(name)

    async def cut(self, name: ClusterName, code: Code, reason: str) -> None:
        self.cuts.append((name, code, reason))

    def forget(self, name: ClusterName) -> None:
        self.forgotten.append(name)
        self.statuses.pop(name, None)
