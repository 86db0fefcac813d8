"""What the status of a Cluster says, from what is known now and what it said before. Pure.

    Joined              a member has this name
    Connected           proxy: a tunnel stands; direct: the member's apiserver takes connections
    Reachable           the member's apiserver answers
    KubeconfigAccepted  direct only: what lies in the Secret is what is used
    CredentialExpiring  within seven days: the agent's certificate, or the credential in a kubeconfig
    Paused              only while it is
    Ready               Joined, Connected and Reachable

It does not flap: what was true stays true for a moment after it ends (an agent that is restarted is back
within two seconds, one bad answer of an apiserver is none), and what a server that has just started
cannot know yet stays as it was. Both within the 5 s that status promises. Numbers that change all the
time (round trip, last seen) go out when something else does, or every ten minutes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from shared.durations import format_duration, rfc3339
from shared.member.report import EXPIRES_SOON, MemberReport
from tower_server.controllers.objects import ClusterView, SecretView
from tower_server.controllers.plan import Rejection
from tower_server.registry import ClusterStatus
from tower_server.stores.ledger import Ledger
from tower_server.tokens import TokenRecord

__all__ = ["REFRESH_EVERY", "Facts", "StatusDecision", "decide_status"]

# Agents dial again within half a second, and have two attempts in this time.
AWAY_AFTER = timedelta(seconds=2)
# Agents ask their apiserver every two seconds: this is one answer that may be bad.
UNREACHABLE_AFTER = timedelta(seconds=2.5)
# A server that has just started hears of its agents within this.
SETTLING = timedelta(seconds=4)
# How old the numbers may grow. A thousand clusters make less than two writes a second.
REFRESH_EVERY = timedelta(minutes=10)

# Other conditions are somebody else's: we neither read nor write them.
_OURS = {
    "Joined",
    "Connected",
    "Reachable",
    "KubeconfigAccepted",
    "CredentialExpiring",
    "Paused",
    "Ready",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about a cluster."""

    now: datetime
    # Since when this server could know anything.
    started_at: datetime
    cluster: ClusterView
    ledger: Ledger
    # The registry's; None for a cluster that it does not know.
    live: ClusterStatus | None
    # Since when the member's apiserver does not answer, without a good answer in between.
    trouble_since: datetime | None
    # Of the join Secret, while it is good.
    invitation: TokenRecord | None
    join: SecretView | None
    namespace: str
    # Of a proxy's agent.
    certificate_ends_at: datetime | None
    has_kubeconfig: bool
    rejection: Rejection | None
    url: str
    tls_server_name: str


@dataclass(frozen=True, kw_only=True)
class StatusDecision:
    """The whole status, and when it may be another without anything happening."""

    status: dict[str, Any]
    is_changed: bool
    look_again_at: datetime | None


@dataclass(frozen=True)
class _Says:
    """A condition without its times."""

    status: str  # "True", "False", "Unknown"
    reason: str
    message: str = ""


def decide_status(facts: Facts) -> StatusDecision:
    """Decide what the status is now."""
    cluster, before = facts.cluster, facts.cluster.status
    if cluster.is_paused:
        said = {"Paused": _Says("True", "Paused", "Tower leaves this object alone.")}
        kept = [
            condition
            for condition in before.get("conditions") or ()
            if condition["type"] in _OURS - {"Paused"}
        ]
        status = {**before, "conditions": [*kept, *_timed(said, facts)]}
        return StatusDecision(
            status=status, is_changed=_differs(status, before), look_again_at=None
        )
    waits: list[datetime] = []
    said = _all(facts, waits)
    status = _numbers(facts)
    status["conditions"] = _timed(said, facts)
    is_changed = _differs(status, before)
    if not is_changed and facts.live is not None and facts.live.state == "connected":
        waits.append(_refreshed_at(before, facts.now) + REFRESH_EVERY)
    return StatusDecision(
        status=status, is_changed=is_changed, look_again_at=min(waits, default=None)
    )


def _all(facts: Facts, waits: list[datetime]) -> dict[str, _Says]:
    said = {"Joined": _joined(facts)}
    said["Connected"] = connected = _connected(facts, waits)
    said["Reachable"] = _reachable(facts, connected, waits)
    if facts.cluster.is_direct:
        said["KubeconfigAccepted"] = _kubeconfig_accepted(facts)
    said["CredentialExpiring"] = _expiring(facts, waits)
    # Ready says what the first one says that is not well.
    essential = (said[kind] for kind in ("Joined", "Connected", "Reachable"))
    first = next((says for says in essential if says.status != "True"), None)
    said["Ready"] = _Says("True", "Ready") if first is None else first
    return said


# -- one by one ----------------------------------------------------------------------------


def _joined(facts: Facts) -> _Says:
    record, cluster = facts.ledger.record, facts.cluster
    if record is not None and record.is_direct != cluster.is_direct:
        is_now = "by a kubeconfig" if record.is_direct else "through its agent"
        return _Says(
            "False",
            "ConnectedOtherwise",
            f"A member of this name is connected {is_now}: end that with `tower cluster remove "
            f"{cluster.name}`.",
        )
    if record is not None:
        return _Says("True", "Joined", f"The member's UID is {record.member_uid}.")
    if cluster.is_direct:
        if not facts.has_kubeconfig:
            return _missing_kubeconfig(facts)
        if facts.rejection is not None:
            return _Says("False", facts.rejection.reason, facts.rejection.sentence)
        return _Says("Unknown", "TryingKubeconfig")
    if facts.rejection is not None:
        return _Says("False", facts.rejection.reason, facts.rejection.sentence)
    if facts.invitation is None or facts.join is None:
        return _Says("False", "MakingJoinSecret")
    return _Says(
        "False",
        "WaitingForAgent",
        f"Apply manifest.yaml of the Secret {facts.namespace}/{facts.join.name} in the member.",
    )


def _connected(facts: Facts, waits: list[datetime]) -> _Says:
    if facts.ledger.record is None:
        return _Says("False", "NotJoined")
    live, is_direct = facts.live, facts.cluster.is_direct
    if live is not None and live.state == "connected":
        return _Says("True", "KubeconfigWorks" if is_direct else "TunnelUp")
    # Away, as far as we know.
    since = live.since if live is not None else None
    doubtful_until = max(
        facts.started_at + SETTLING,
        facts.started_at if since is None else since + AWAY_AFTER,
    )
    if facts.now < doubtful_until and _was(facts, "Connected") == "True":
        waits.append(doubtful_until)
        return _as_before(facts, "Connected")
    reason = "MemberAway" if is_direct else "AgentAway"
    what = "The member's apiserver" if is_direct else "The agent"
    if since is None:
        # Of another server's life: it said since when.
        earlier = _as_before(facts, "Connected")
        if earlier.status == "False" and earlier.reason == reason:
            return earlier
        since = facts.started_at
    return _Says("False", reason, f"{what} is away since {rfc3339(since)}.")


def _reachable(facts: Facts, connected: _Says, waits: list[datetime]) -> _Says:
    if connected.status != "True":
        return _Says("Unknown", "NotConnected")
    report = facts.live.report if facts.live is not None else MemberReport()
    if report.apiserver_error is not None:
        doubtful_until = (facts.trouble_since or facts.now) + UNREACHABLE_AFTER
        if facts.now < doubtful_until and _was(facts, "Reachable") == "True":
            waits.append(doubtful_until)
            return _as_before(facts, "Reachable")
        return _Says("False", "ApiserverNotAnswering", report.apiserver_error)
    if report.apiserver_version is None:
        since = facts.live.since if facts.live is not None else None
        doubtful_until = max(facts.started_at, since or facts.started_at) + SETTLING
        if facts.now < doubtful_until and _was(facts, "Reachable") == "True":
            waits.append(doubtful_until)
            return _as_before(facts, "Reachable")
        return _Says("Unknown", "NoReportYet")
    return _Says("True", "ApiserverAnswers")


def _kubeconfig_accepted(facts: Facts) -> _Says:
    if not facts.has_kubeconfig:
        return _missing_kubeconfig(facts)
    if facts.rejection is not None:
        return _Says("False", facts.rejection.reason, facts.rejection.sentence)
    if facts.ledger.direct is None:
        return _Says("Unknown", "TryingKubeconfig")
    return _Says("True", "Accepted")


def _missing_kubeconfig(facts: Facts) -> _Says:
    cluster = facts.cluster
    return _Says(
        "False",
        "KubeconfigMissing",
        f"There is no key {cluster.secret_key!r} in a Secret "
        f"{facts.namespace}/{cluster.secret_name}: put the kubeconfig there.",
    )


def _expiring(facts: Facts, waits: list[datetime]) -> _Says:
    report = facts.live.report if facts.live is not None else MemberReport()
    ends = [
        moment
        for moment in (facts.certificate_ends_at, report.credential_expires_at)
        if moment is not None
    ]
    if not ends:
        # Of an agent that was not here since we started, the server before us knew.
        unknown = not facts.cluster.is_direct and facts.ledger.record is not None
        if unknown and _was(facts, "CredentialExpiring") is not None:
            return _as_before(facts, "CredentialExpiring")
        return _Says("False", "NotSoon")
    first = min(ends)
    if facts.now < first - EXPIRES_SOON:
        waits.append(first - EXPIRES_SOON)
        return _Says("False", "NotSoon", f"It ends at {rfc3339(first)}.")
    what = (
        "The agent's certificate"
        if first == facts.certificate_ends_at
        else "The credential in the kubeconfig"
    )
    if first <= facts.now:
        return _Says("True", "Expired", f"{what} ended at {rfc3339(first)}.")
    days = format_duration(EXPIRES_SOON)
    return _Says(
        "True", "ExpiresSoon", f"{what} ends within {days}, at {rfc3339(first)}."
    )


# -- the rest of the status ----------------------------------------------------------------


def _numbers(facts: Facts) -> dict[str, Any]:
    cluster, live, record = facts.cluster, facts.live, facts.ledger.record
    before = cluster.status
    status: dict[str, Any] = {"observedGeneration": cluster.generation}
    if record is None:
        if facts.invitation is not None and facts.join is not None:
            status["joinSecret"] = {
                "name": facts.join.name,
                "namespace": facts.namespace,
                "expiresAt": rfc3339(facts.invitation.expires_at),
            }
        return status
    report = live.report if live is not None else MemberReport()
    is_connected = live is not None and live.state == "connected"
    values: dict[str, Any] = {
        "joinedAt": rfc3339(record.joined_at),
        "memberUID": record.member_uid,
        "agentVersion": _version(live.agent_version if live is not None else None)
        or record.agent_version,
        # What was last heard stays known.
        "kubernetesVersion": report.apiserver_version
        or before.get("kubernetesVersion"),
        "nodeCount": before.get("nodeCount")
        if report.node_count is None
        else report.node_count,
        "roundTrip": _round_trip(live.rtt_seconds if live is not None else None)
        or before.get("roundTrip"),
        "lastSeen": rfc3339(facts.now)
        if is_connected
        else rfc3339(live.since)
        if live is not None and live.since is not None
        else before.get("lastSeen"),
        "endpoints": [{"url": facts.url, "tlsServerName": facts.tls_server_name}],
    }
    status |= {name: value for name, value in values.items() if value is not None}
    return status


def _version(software: str | None) -> str | None:
    """`tower-agent/0.1.0` without its name."""
    return software.rpartition("/")[2] if software else None


def _round_trip(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds * 1000:.1f}ms"


def _timed(said: Mapping[str, _Says], facts: Facts) -> list[dict[str, Any]]:
    """Conditions with the time since when each has its status."""
    earlier = {c["type"]: c for c in facts.cluster.status.get("conditions") or ()}
    conditions = []
    for kind, says in said.items():
        condition: dict[str, Any] = {
            "type": kind,
            "status": says.status,
            "reason": says.reason,
            "observedGeneration": facts.cluster.generation,
            "lastTransitionTime": rfc3339(facts.now),
        }
        if says.message:
            condition["message"] = says.message
        before = earlier.get(kind)
        if before is not None and before["status"] == says.status:
            condition["lastTransitionTime"] = before["lastTransitionTime"]
        conditions.append(condition)
    return conditions


def _was(facts: Facts, kind: str) -> str | None:
    for condition in facts.cluster.status.get("conditions") or ():
        if condition["type"] == kind:
            return str(condition["status"])
    return None


def _as_before(facts: Facts, kind: str) -> _Says:
    for condition in facts.cluster.status.get("conditions") or ():
        if condition["type"] == kind:
            return _Says(
                condition["status"], condition["reason"], condition.get("message", "")
            )
    return _Says("Unknown", "NotKnownYet")


# Written along with anything else, and worth no write of their own.
_NUMBERS = {"roundTrip", "lastSeen"}


def _differs(status: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether it is worth a write: numbers alone are when they are old, or were not there."""
    if _without_numbers(status) != _without_numbers(before):
        return True
    if any(name in status and name not in before for name in _NUMBERS):
        return True
    if status.get("lastSeen") == before.get("lastSeen"):
        return False
    if not _is_connected(status):
        return True  # since when it is away is exact
    seen_at = datetime.fromisoformat(status["lastSeen"])
    return _refreshed_at(before, seen_at) + REFRESH_EVERY <= seen_at


def _without_numbers(status: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: status[name] for name in status if name not in _NUMBERS}
    # Their order is ours, and somebody else's conditions are none of our business.
    kept["conditions"] = {
        condition["type"]: condition
        for condition in status.get("conditions") or ()
        if condition["type"] in _OURS
    }
    return kept


def _is_connected(status: Mapping[str, Any]) -> bool:
    return any(
        condition["type"] == "Connected" and condition["status"] == "True"
        for condition in status.get("conditions") or ()
    )


def _refreshed_at(before: Mapping[str, Any], now: datetime) -> datetime:
    text = before.get("lastSeen")
    if text is None:
        return now
    return min(now, datetime.fromisoformat(text))
