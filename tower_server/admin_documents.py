"""What the admin API says: tokens, clusters and the server as JSON objects. Pure.

Times are RFC 3339 in UTC, spans are numbers of seconds, what is not known is null.
No object here has a secret in it; join strings and kubeconfigs are added by the one
answer that hands them out.
"""

from datetime import datetime
from typing import Any

from certs.names import ClusterName, host_name
from shared.durations import format_duration, rfc3339
from shared.member.report import MemberReport
from shared.mux.readings import TunnelReading
from shared.settings import HostPort
from tower_server.kubeconfig import cluster_url
from tower_server.registry import ClusterStatus, TunnelStatus
from tower_server.stores import ClusterRecord, TokenRecord
from tower_server.tokens import TokenState, state_of

__all__ = [
    "cluster_document",
    "connection_of",
    "token_document",
    "traffic_document",
    "waiting_clusters",
    "warnings_of",
]


def token_document(token: TokenRecord, now: datetime) -> dict[str, Any]:
    """A join token without its secret, which we do not have."""
    return {
        "id": token.id,
        "cluster": token.cluster,
        "state": state_of(token, now).value,
        "created_at": rfc3339(token.created_at),
        "expires_at": rfc3339(token.expires_at),
        "used_at": _optional(token.used_at),
        "revoked_at": _optional(token.revoked_at),
    }


def cluster_document(
    name: ClusterName,
    *,
    record: ClusterRecord | None,
    status: ClusterStatus | None,
    server_started_at: datetime,
    zone: str,
    public_address: HostPort,
    now: datetime,
) -> dict[str, Any]:
    """A cluster that has joined (`record`), or one that a token waits for (None)."""
    state: str = status.state if status and record else "never"
    since = status.since if status and record else None
    if record and state == "never":
        # The registry forgets with the process. A cluster that has joined has been here: it is
        # away, at least since then or since our start.
        state, since = "away", max(record.joined_at, server_started_at)
    report = status.report if status else MemberReport()
    return {
        "name": name,
        "state": state,
        "joined": record is not None,
        "connection": None if record is None else connection_of(record),
        "since": _optional(since),
        "rtt_seconds": _rounded(status.rtt_seconds if status else None),
        "agent_version": (status.agent_version if status else None)
        or (record.agent_version if record else None),
        "apiserver_version": report.apiserver_version,
        "apiserver_error": report.apiserver_error,
        "node_count": report.node_count,
        "credential_expires_at": _optional(report.credential_expires_at),
        "warnings": warnings_of(record, report, now) if record else [],
        "open_streams": status.open_streams if status else 0,
        "sessions": status.sessions if status else 0,
        "tunnels": [
            _tunnel(tunnel)
            for tunnel in (status.tunnels if status else ())
            if record and not record.is_direct
        ],
        "joined_at": _optional(record.joined_at if record else None),
        "member_uid": record.member_uid if record else None,
        "url": cluster_url(public_address, name),
        "tls_server_name": host_name(name, zone),
    }


def connection_of(record: ClusterRecord) -> str:
    """How a member is reached, in the word of the resource `Cluster`."""
    return "direct" if record.is_direct else "proxy"


def warnings_of(
    record: ClusterRecord, report: MemberReport, now: datetime
) -> list[str]:
    """What somebody should see to before it hurts, a sentence each."""
    ends = report.credential_expires_at
    if ends is None or not report.expires_soon(now):
        return []
    when = (
        f"expires in {format_duration(ends - now)}"
        if ends > now
        else f"expired {format_duration(now - ends)} ago"
    )
    if record.is_direct:
        return [
            f"The credential in its kubeconfig {when}: give a new one with "
            f"`tower cluster set-kubeconfig {record.name}`."
        ]
    return [f"The credential in its agent's kubeconfig {when}: renew it in the member."]


def _tunnel(tunnel: TunnelStatus) -> dict[str, Any]:
    return {
        "state": tunnel.state,
        "since": rfc3339(tunnel.since),
        "rtt_seconds": _rounded(tunnel.rtt_seconds),
        "open_streams": tunnel.open_streams,
        "agent_version": tunnel.agent_version,
    }


def traffic_document(status: ClusterStatus, reading: TunnelReading) -> dict[str, Any]:
    """What goes through a cluster's tunnels. What ends in `_total` only grows while the server
    runs, and begins at 0 with it; sent is what the server has sent."""
    counted = reading.counters
    return {
        "name": status.name,
        "state": "connected" if status.state == "connected" else "away",
        "since": _optional(status.since),
        "sessions": reading.sessions,
        "rtt_seconds": _rounded(reading.rtt_seconds),
        "open_streams": reading.open_streams,
        "stalled_streams": reading.stalled_streams,
        "queued_bytes": reading.queued_bytes,
        "unread_bytes": reading.unread_bytes,
        "window_bytes": reading.window_bytes,
        "kept_bytes": reading.kept_bytes,
        "sent_bytes_total": counted.sent_bytes,
        "sent_bulk_bytes_total": counted.sent_bulk_bytes,
        "received_bytes_total": counted.received_bytes,
        "streams_opened_total": counted.opened_by_server + counted.opened_by_agent,
        "resets_total": sum(counted.resets_sent.values())
        + sum(counted.resets_received.values()),
        "window_stalls_total": counted.window_stalls,
        "resumes_total": counted.resumes,
        "retransmitted_bytes_total": counted.resent_bytes,
    }


def waiting_clusters(
    tokens: list[TokenRecord], clusters: list[ClusterRecord], now: datetime
) -> list[ClusterName]:
    """Names that a token could still join and that no cluster has: invited and not yet here."""
    here = {cluster.name for cluster in clusters}
    invited = {
        token.cluster for token in tokens if state_of(token, now) is TokenState.READY
    }
    return sorted(invited - here)


def _optional(moment: datetime | None) -> str | None:
    return rfc3339(moment) if moment else None


def _rounded(seconds: float | None) -> float | None:
    """To microseconds: what is below is noise of the clock and of binary fractions."""
    return round(seconds, 6) if seconds is not None else None
