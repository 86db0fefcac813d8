"""What the status says. Pure.

Covered: each condition with its reasons; nothing flaps, and nothing is kept for longer than it may be; a
server that has just started; times of transitions; expiry; numbers that are worth no write; whose
conditions are whose; paused.
"""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from shared.durations import rfc3339
from shared.member.report import MemberReport
from tests.fakes.cluster_objects import ALPHA, NOW, cluster, join_view, ledger, token
from tower_server.controllers.conditions import (
    AWAY_AFTER,
    REFRESH_EVERY,
    SETTLING,
    UNREACHABLE_AFTER,
    Facts,
    StatusDecision,
    decide_status,
)
from tower_server.controllers.plan import Rejection
from tower_server.registry import ClusterStatus

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
WELL = MemberReport(apiserver_version="v1.37.0", node_count=3)
DIRECT = {"type": "direct", "kubeconfigSecret": {"name": "s"}}


def live(state: Any = "connected", **fields: Any) -> ClusterStatus:
    values: dict[str, Any] = {
        "since": NOW - timedelta(hours=1),
        "rtt_seconds": 0.0123,
        "agent_version": "tower-agent/0.1.0",
        "report": WELL,
    }
    return ClusterStatus(name=ALPHA, state=state, **values | fields)


def facts(**fields: Any) -> Facts:
    values: dict[str, Any] = {
        "now": NOW,
        "started_at": NOW - DAY,
        "cluster": cluster(),
        "ledger": ledger(joined=True),
        "live": live(),
        "trouble_since": None,
        "invitation": None,
        "join": None,
        "namespace": "tower",
        "certificate_ends_at": NOW + 20 * DAY,
        "has_kubeconfig": False,
        "rejection": None,
        "url": "https://tower.example.com:8443/clusters/alpha",
        "tls_server_name": "alpha.clusters.tower.internal",
    }
    return Facts(**values | fields)


def conditions(decided: StatusDecision) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in decided.status["conditions"]}


def said(decided: StatusDecision, kind: str) -> tuple[str, str]:
    condition = conditions(decided)[kind]
    return condition["status"], condition["reason"]


def then(before: Facts, after: timedelta, **fields: Any) -> Facts:
    """Later facts, of an object that has the status that was decided before."""
    status = decide_status(before).status
    view = dataclasses.replace(before.cluster, status=status)
    return dataclasses.replace(before, cluster=view, now=before.now + after, **fields)


WAITING = {
    "ledger": ledger(tokens=(token(),)),
    "invitation": token(),
    "join": join_view(),
    "live": None,
    "certificate_ends_at": None,
}


# -- what is said --------------------------------------------------------------------------


def test_a_cluster_that_is_well() -> None:
    decided = decide_status(facts())
    assert {kind: c["status"] for kind, c in conditions(decided).items()} == {
        "Joined": "True",
        "Connected": "True",
        "Reachable": "True",
        "CredentialExpiring": "False",
        "Ready": "True",
    }
    status = {k: v for k, v in decided.status.items() if k != "conditions"}
    assert status == {
        "observedGeneration": 1,
        "joinedAt": rfc3339(NOW - DAY),
        "memberUID": "member-uid",
        "agentVersion": "0.1.0",
        "kubernetesVersion": "v1.37.0",
        "nodeCount": 3,
        "roundTrip": "12.3ms",
        "lastSeen": rfc3339(NOW),
        "endpoints": [
            {
                "url": "https://tower.example.com:8443/clusters/alpha",
                "tlsServerName": "alpha.clusters.tower.internal",
            }
        ],
    }
    assert decided.is_changed


def test_one_that_waits_for_its_agent_says_what_to_do() -> None:
    decided = decide_status(facts(**WAITING))
    assert said(decided, "Ready") == ("False", "WaitingForAgent")
    assert (
        "manifest.yaml of the Secret tower/tower-join-alpha"
        in (conditions(decided)["Ready"]["message"])
    )
    assert decided.status["joinSecret"] == {
        "name": "tower-join-alpha",
        "namespace": "tower",
        "expiresAt": rfc3339(token().expires_at),
    }
    assert "memberUID" not in decided.status


def test_one_without_a_join_secret_yet() -> None:
    decided = decide_status(facts(**WAITING | {"invitation": None, "join": None}))
    assert said(decided, "Ready") == ("False", "MakingJoinSecret")


@pytest.mark.parametrize(
    ("changed", "kind", "status", "reason"),
    [
        ({"live": live("away", since=NOW - DAY)}, "Connected", "False", "AgentAway"),
        ({"live": None}, "Connected", "False", "AgentAway"),
        (
            {"live": live("away", since=NOW - DAY)},
            "Reachable",
            "Unknown",
            "NotConnected",
        ),
        ({"live": live(report=MemberReport())}, "Reachable", "Unknown", "NoReportYet"),
        (
            {"live": live(report=MemberReport(apiserver_error="refused"))},
            "Reachable",
            "False",
            "ApiserverNotAnswering",
        ),
        ({"ledger": ledger(direct=True)}, "Joined", "False", "ConnectedOtherwise"),
    ],
)
def test_what_is_not_well_is_the_reason_of_ready(
    changed: dict[str, Any], kind: str, status: str, reason: str
) -> None:
    decided = decide_status(facts(**changed))
    assert said(decided, kind) == (status, reason)
    assert said(decided, "Ready")[0] != "True"


REJECTION = Rejection(
    digest="d", reason="OtherMember", sentence="No.", at=NOW, may_pass=True
)


@pytest.mark.parametrize(
    ("changed", "kind", "reason"),
    [
        ({"ledger": ledger()}, "Ready", "KubeconfigMissing"),
        ({"ledger": ledger(), "has_kubeconfig": True}, "Ready", "TryingKubeconfig"),
        (
            {"ledger": ledger(), "has_kubeconfig": True, "rejection": REJECTION},
            "Ready",
            "OtherMember",
        ),
        ({"live": live("away", since=NOW - DAY)}, "Ready", "MemberAway"),
        ({"live": live()}, "Ready", "Ready"),
        # What was taken goes on while what is there now is refused.
        ({"rejection": REJECTION, "has_kubeconfig": True}, "Ready", "Ready"),
        (
            {"rejection": REJECTION, "has_kubeconfig": True},
            "KubeconfigAccepted",
            "OtherMember",
        ),
        ({}, "KubeconfigAccepted", "KubeconfigMissing"),
    ],
)
def test_a_direct_connection(changed: dict[str, Any], kind: str, reason: str) -> None:
    values = {"cluster": cluster(connection=DIRECT), "ledger": ledger(direct=True)}
    decided = decide_status(facts(**values | {"certificate_ends_at": None} | changed))
    assert said(decided, kind)[1] == reason


def test_a_spec_that_cannot_be_is_said() -> None:
    rejection = dataclasses.replace(REJECTION, reason="BadSpec")
    decided = decide_status(facts(**WAITING | {"join": None, "rejection": rejection}))
    assert said(decided, "Ready") == ("False", "BadSpec")


# -- no flapping, and no lies --------------------------------------------------------------


def away(since: Any) -> ClusterStatus:
    return live("away", since=since)


def test_an_agent_that_is_restarted_is_not_away() -> None:
    gone = then(facts(), SECOND, live=away(NOW))
    decided = decide_status(gone)
    assert said(decided, "Ready") == ("True", "Ready") and not decided.is_changed
    assert decided.look_again_at == NOW + AWAY_AFTER
    late = dataclasses.replace(gone, now=NOW + AWAY_AFTER)
    decided = decide_status(late)
    assert said(decided, "Ready") == ("False", "AgentAway") and decided.is_changed
    assert decided.status["lastSeen"] == rfc3339(NOW)


def test_one_bad_answer_of_an_apiserver_is_none() -> None:
    bad = live(report=MemberReport(apiserver_version="v1.37.0", apiserver_error="no"))
    trouble = then(facts(), SECOND, live=bad, trouble_since=NOW + SECOND)
    decided = decide_status(trouble)
    assert said(decided, "Reachable") == ("True", "ApiserverAnswers")
    assert decided.look_again_at == NOW + SECOND + UNREACHABLE_AFTER
    late = dataclasses.replace(trouble, now=NOW + SECOND + UNREACHABLE_AFTER)
    assert said(decide_status(late), "Reachable")[1] == "ApiserverNotAnswering"


def test_what_was_not_true_does_not_become_true_by_waiting() -> None:
    gone = facts(live=away(NOW - SECOND))
    assert said(decide_status(gone), "Connected") == ("False", "AgentAway")


def test_a_server_that_has_just_started_leaves_what_it_cannot_know() -> None:
    # The registry knows nobody; the cluster was well.
    new = then(facts(), DAY, live=None, started_at=NOW + DAY - SECOND)
    decided = decide_status(new)
    assert said(decided, "Ready") == ("True", "Ready")
    assert decided.look_again_at == NOW + DAY - SECOND + SETTLING
    # Here it is, and has not reported yet.
    here = live(since=NOW + DAY, report=MemberReport())
    decided = decide_status(dataclasses.replace(new, live=here))
    assert said(decided, "Ready") == ("True", "Ready")
    late = dataclasses.replace(new, now=new.started_at + SETTLING)
    assert said(decide_status(late), "Ready") == ("False", "AgentAway")


def test_since_when_it_is_away_is_remembered_over_restarts() -> None:
    gone = then(facts(), timedelta(hours=1), live=away(NOW))
    later = then(gone, DAY, live=None, started_at=NOW + DAY)
    decided = decide_status(later)
    message = conditions(decided)["Connected"]["message"]
    assert rfc3339(NOW) in message and not decided.is_changed
    assert decided.status["lastSeen"] == rfc3339(NOW)


def test_who_is_away_is_not_looked_at_again_and_again() -> None:
    gone = then(facts(), DAY, live=away(NOW), certificate_ends_at=None)
    for later in (then(gone, DAY), then(gone, DAY, live=None)):
        decided = decide_status(later)
        assert not decided.is_changed and decided.look_again_at is None


def test_all_of_it_within_the_five_seconds_that_are_promised() -> None:
    promised = timedelta(seconds=5)
    assert AWAY_AFTER + SECOND <= promised and SETTLING + SECOND <= promised
    # An agent asks every two seconds, and waits two for an answer.
    assert UNREACHABLE_AFTER + timedelta(seconds=2.5) <= promised


def test_the_time_of_a_transition_is_that_of_the_status() -> None:
    gone = then(facts(), DAY, live=away(NOW + DAY - timedelta(minutes=1)))
    decided = conditions(decide_status(gone))
    assert decided["Joined"]["lastTransitionTime"] == rfc3339(NOW)
    assert decided["Connected"]["lastTransitionTime"] == rfc3339(NOW + DAY)
    still = decide_status(then(gone, SECOND))
    assert conditions(still)["Connected"]["lastTransitionTime"] == rfc3339(NOW + DAY)
    assert not still.is_changed


# -- expiry --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "status", "reason"),
    [(8, "False", "NotSoon"), (6.9, "True", "ExpiresSoon"), (-1, "True", "Expired")],
)
def test_a_certificate_that_ends_is_said_a_week_before(
    days: float, status: str, reason: str
) -> None:
    ends_at = NOW + timedelta(days=days)
    decided = decide_status(facts(certificate_ends_at=ends_at))
    assert said(decided, "CredentialExpiring") == (status, reason)
    if reason == "NotSoon":
        assert (
            decide_status(then(facts(certificate_ends_at=ends_at), SECOND)) is not None
        )
        assert rfc3339(ends_at) in conditions(decided)["CredentialExpiring"]["message"]


def test_the_credential_in_a_kubeconfig_counts_too() -> None:
    report = dataclasses.replace(WELL, credential_expires_at=NOW + DAY)
    decided = decide_status(facts(live=live(report=report)))
    assert said(decided, "CredentialExpiring") == ("True", "ExpiresSoon")
    message = conditions(decided)["CredentialExpiring"]["message"]
    assert message.startswith("The credential in the kubeconfig")


def test_a_warning_outlives_the_server_that_gave_it() -> None:
    ends_at = NOW + 3 * DAY
    before = facts(live=away(NOW - DAY), certificate_ends_at=ends_at)
    later = then(before, DAY, live=None, started_at=NOW, certificate_ends_at=None)
    decided = decide_status(later)
    assert said(decided, "CredentialExpiring") == ("True", "ExpiresSoon")
    assert not decided.is_changed


def test_it_looks_again_when_a_week_is_left() -> None:
    ends_at = NOW + 7 * DAY + timedelta(minutes=3)
    decided = decide_status(then(facts(certificate_ends_at=ends_at), SECOND))
    assert decided.look_again_at == ends_at - 7 * DAY


# -- numbers and others --------------------------------------------------------------------


def test_numbers_alone_are_worth_no_write() -> None:
    later = then(facts(), timedelta(minutes=5), live=live(rtt_seconds=0.5))
    decided = decide_status(later)
    assert not decided.is_changed
    assert decided.look_again_at == NOW + REFRESH_EVERY
    old = dataclasses.replace(later, now=NOW + REFRESH_EVERY)
    decided = decide_status(old)
    assert decided.is_changed and decided.status["roundTrip"] == "500.0ms"


@pytest.mark.parametrize(
    "changed",
    [
        {"live": live(report=dataclasses.replace(WELL, node_count=4))},
        {"live": live(agent_version="tower-agent/0.2.0")},
        {"live": live(report=dataclasses.replace(WELL, apiserver_version="v1.38.0"))},
        {"url": "https://elsewhere:8443/clusters/alpha"},
    ],
)
def test_news_are(changed: dict[str, Any]) -> None:
    assert decide_status(then(facts(), SECOND, **changed)).is_changed


def test_a_first_round_trip_is_news() -> None:
    assert decide_status(then(facts(live=live(rtt_seconds=None)), SECOND, live=live()))


def test_what_was_last_heard_stays_known() -> None:
    gone = then(facts(), DAY, live=None, started_at=NOW - DAY)
    status = decide_status(gone).status
    assert (status["kubernetesVersion"], status["nodeCount"]) == ("v1.37.0", 3)


def test_conditions_of_others_are_neither_read_nor_written() -> None:
    later = then(facts(), SECOND)
    theirs = {"type": "Theirs", "status": "True", "reason": "X"}
    status = {**later.cluster.status}
    status["conditions"] = [theirs, *status["conditions"]]
    view = dataclasses.replace(later.cluster, status=status)
    decided = decide_status(dataclasses.replace(later, cluster=view))
    assert not decided.is_changed and "Theirs" not in conditions(decided)


def test_a_paused_cluster_says_so_once_and_nothing_else() -> None:
    before = then(facts(), SECOND)
    view = dataclasses.replace(before.cluster, is_paused=True)
    paused = dataclasses.replace(before, cluster=view, live=None)
    decided = decide_status(paused)
    assert said(decided, "Paused") == ("True", "Paused") and decided.is_changed
    assert said(decided, "Ready") == ("True", "Ready")  # as it was
    again = then(paused, SECOND)
    assert not decide_status(again).is_changed
    # Going on takes the condition away.
    on = dataclasses.replace(
        again, cluster=dataclasses.replace(again.cluster, is_paused=False), live=live()
    )
    decided = decide_status(on)
    assert "Paused" not in conditions(decided) and decided.is_changed
