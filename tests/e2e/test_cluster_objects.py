"""Cluster objects of the host, with real processes: declared, joined, away, removed.

Covered: a declared cluster has a join Secret and becomes Ready with it; `kubectl get clusters` tells the
truth within 5 s of whatever dies or comes back; deleting the object revokes and cuts, also with a member
that is dead, and leaves the member's own things; made again, it joins again; the command `tower` and the
objects are two views of one thing; a restarted server neither forgets nor flaps; paused; a direct
connection from a Secret, another kubeconfig without a restart, and none of another member; what happens
while the host's apiserver is away is told when it is back; two servers do not fight, and the second takes
over; an object that is taken away past its finalizer takes its member along; the chart's rules are enough,
and all of them are needed.
"""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host
from tests.e2e.member import Member
from tests.e2e.raw_client import Access, works
from tests.e2e.tower import AgentOptions, Tower, wait_until
from tests.testbed.controlplane import ControlPlane

TRUTH_SECONDS = 5.0
# kubectl's own answer to a deletion that waits for nobody.
DELETED_SECONDS = 5


@pytest.fixture
def place(host: ControlPlane, tmp_path: Path) -> Iterator[Host]:
    place = Host(host, tmp_path / "homes")
    yield place
    place.clear()


@pytest.fixture
def kept(place: Host, new_tower: Callable[..., Tower]) -> Tower:
    """A Tower of its own that keeps its state in the host cluster."""
    return new_tower(arguments=place.arguments())


def declare(place: Host, name: str, **spec: Any) -> None:
    place.apply(
        {
            "apiVersion": "tower.dev/v1alpha1",
            "kind": "Cluster",
            "metadata": {"name": name},
            "spec": spec,
        }
    )


def invitation(place: Host, name: str) -> dict[str, str]:
    """What the join Secret says, once it is there."""
    secret = f"tower-join-{name}"
    wait_until(lambda: secret in place.secrets(), TRUTH_SECONDS, secret)
    data = place.secrets()[secret]["data"]
    return {key: base64.b64decode(data[key]).decode() for key in data}


def row(place: Host, name: str) -> dict[str, str]:
    """What `kubectl get clusters` says, by column; nothing while there is none."""
    lines = place.kubectl.quiet("get", "clusters.tower.dev", "-o", "wide").splitlines()
    if not lines:  # "No resources found" goes to stderr, and there is no header then
        return {}
    header = lines[0]
    columns = [c for c in header.split("  ") if c.strip()]
    starts = [header.index(c.strip()) for c in columns]
    for line in lines[1:]:
        ends = [*starts[1:], len(line) + 1]
        cells = [line[a:b].strip() for a, b in zip(starts, ends, strict=True)]
        if cells[0] == name:
            return dict(zip((c.strip() for c in columns), cells, strict=True))
    return {}


def wait_for(
    place: Host, name: str, seconds: float = TRUTH_SECONDS, **cells: str
) -> None:
    def is_so() -> bool:
        found = row(place, name)
        return all(found.get(column) == cell for column, cell in cells.items())

    try:
        wait_until(is_so, seconds, f"{name}: {cells}")
    except AssertionError as error:
        status = json.dumps(place.clusters().get(name, {}).get("status"), indent=1)
        raise AssertionError(f"{error}\n{row(place, name)}\n{status}") from None


def conditions(place: Host, name: str) -> dict[str, str]:
    return {
        c["type"]: c["status"] for c in place.clusters()[name]["status"]["conditions"]
    }


def join(kept: Tower, place: Host, member: Member, **spec: Any) -> None:
    declare(place, member.name, **spec)
    kept.join(member, AgentOptions(invitation=invitation(place, member.name)))


def test_a_declared_cluster_joins_with_its_secret_and_is_always_true(
    kept: Tower, place: Host, alpha: Member
) -> None:
    declare(place, "alpha", allowedUsers=["tower:admin", "bob"])
    invited = invitation(place, "alpha")
    wait_for(place, "alpha", READY="False", REASON="WaitingForAgent", TYPE="proxy")
    assert "- bob" in invited["manifest.yaml"]
    status = place.clusters()["alpha"]["status"]
    assert status["joinSecret"]["name"] == "tower-join-alpha"
    agent = kept.join(alpha, AgentOptions(invitation=invited))
    wait_for(place, "alpha", READY="True", REASON="Ready")
    found = row(place, "alpha")
    assert found["KUBERNETES"].startswith("v1.") and found["RTT"].endswith("ms")
    status = place.clusters()["alpha"]["status"]
    assert status["memberUID"] == kept.cluster("alpha")["member_uid"]
    assert status["endpoints"][0]["url"].endswith("/clusters/alpha")
    assert "joinSecret" not in status
    wait_until(
        lambda: "tower-join-alpha" not in place.secrets(),
        TRUTH_SECONDS,
        "the join Secret is gone",
    )
    wait_for(place, "alpha", 35, NODES="1")
    # The agent dies and comes back; then its apiserver.
    agent.process.kill()
    wait_for(place, "alpha", READY="False", REASON="AgentAway")
    agent.process.start()
    agent.wait_ready()
    wait_for(place, "alpha", READY="True")
    alpha.plane.kill("kube-apiserver")
    try:
        wait_for(place, "alpha", READY="False", REASON="ApiserverNotAnswering")
        assert conditions(place, "alpha")["Connected"] == "True"
    finally:
        alpha.plane.restart("kube-apiserver")
        alpha.plane.wait_ready()
    wait_for(place, "alpha", READY="True")


def test_deleting_it_revokes_and_cuts_and_waits_for_no_member(
    kept: Tower, place: Host, alpha: Member
) -> None:
    join(kept, place, alpha)
    access = Access(kept.kubeconfig("alpha"))
    wait_until(lambda: works(access), TRUTH_SECONDS, "works")
    alpha.admin.quiet("create", "configmap", "of-the-member", "-n", "default")
    try:
        # The member is dead: nothing answers there, and its agent is frozen out.
        agent = kept.agents.pop("alpha")
        agent.process.kill()
        delete = ["delete", "clusters.tower.dev", "alpha"]
        place.kubectl.quiet(*delete, f"--timeout={DELETED_SECONDS}s")
        assert "alpha" not in place.clusters()
        assert not works(access)
        assert kept.run_admin("cluster", "show", "alpha").returncode == 3
        # The old agent comes back, and is told that it is no more.
        agent.process.start()
        wait_until(
            lambda: "is not known here" in agent.process.log_tail(),
            20,
            f"the agent is told\n{agent.process.log_tail()}",
        )
        agent.process.stop()
        assert "of-the-member" in alpha.admin.quiet("get", "configmap", "-o", "name")
        # Made again, it is a new invitation to the same member.
        (kept.directory / "agent-alpha").rename(kept.directory / "old")
        join(kept, place, alpha)
        wait_for(place, "alpha", READY="True")
        # Deleted while its agent is connected: the tunnel ends.
        place.kubectl.quiet(*delete, f"--timeout={DELETED_SECONDS}s")
        access = Access(kept.directory / "alpha.kubeconfig")
        wait_until(lambda: not works(access), TRUTH_SECONDS, "cut")
    finally:
        alpha.admin.quiet("delete", "configmap", "of-the-member", "-n", "default")


def test_the_command_line_and_the_objects_are_one_thing(
    kept: Tower, place: Host, alpha: Member
) -> None:
    kept.join(alpha)
    wait_for(place, "alpha", READY="True")
    assert place.clusters()["alpha"]["spec"]["connection"]["type"] == "proxy"
    kept.admin("cluster", "remove", "alpha", "--yes")
    wait_until(
        lambda: "alpha" not in place.clusters(), TRUTH_SECONDS, "the object is gone"
    )
    assert "tower-join-alpha" not in place.secrets()
    # Declared only, and dismissed by the command line: not invited again.
    declare(place, "gamma")
    invitation(place, "gamma")
    kept.admin("cluster", "remove", "gamma", "--yes")
    wait_until(
        lambda: "gamma" not in place.clusters(), TRUTH_SECONDS, "the object is gone"
    )
    listed = json.loads(kept.admin("cluster", "list", "-o", "json"))
    assert listed["clusters"] == []


def test_a_restarted_server_neither_forgets_nor_flaps(
    kept: Tower, place: Host, alpha: Member
) -> None:
    join(kept, place, alpha)
    wait_for(place, "alpha", READY="True")
    since = transition(place, "Ready")
    kept.server.kill()
    kept.start()
    kept.wait_connected("alpha", TRUTH_SECONDS)
    access = Access(kept.kubeconfig("alpha"))
    wait_until(lambda: works(access), TRUTH_SECONDS, "works")
    # A change that only the new server can have written, and then still the same Ready.
    place.kubectl.quiet(
        "patch", "clusters.tower.dev", "alpha", "--type=merge", "-p", PAUSE
    )
    wait_until(
        lambda: conditions(place, "alpha").get("Paused") == "True",
        TRUTH_SECONDS,
        "paused by the new server",
    )
    assert (transition(place, "Ready"), row(place, "alpha")["READY"]) == (since, "True")
    # Paused: nothing is written, but a deletion is acted upon.
    kept.agents["alpha"].process.kill()
    place.kubectl.quiet(
        "delete", "clusters.tower.dev", "alpha", f"--timeout={DELETED_SECONDS}s"
    )


def put_kubeconfig(place: Host, name: str, text: str) -> None:
    metadata = {"name": name, "namespace": place.namespace}
    place.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "stringData": {"value": text},
        }
    )


def reason(place: Host, name: str, kind: str) -> str:
    found = place.clusters()[name].get("status", {}).get("conditions") or []
    return str(next((c["reason"] for c in found if c["type"] == kind), ""))


def test_a_direct_connection_follows_its_secret(
    kept: Tower, place: Host, alpha: Member, beta: Member
) -> None:
    everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    admins = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group"}
    beta.grant("tower-direct", {**admins, "name": "tower:cluster-admins"}, everything)
    secret = {"type": "direct", "kubeconfigSecret": {"name": "of-beta"}}
    declare(place, "beta", connection=secret)
    wait_for(place, "beta", READY="False", REASON="KubeconfigMissing", TYPE="direct")
    put_kubeconfig(place, "of-beta", beta.plane.kubeconfig.read_text())
    wait_for(place, "beta", READY="True", NODES="1")
    access = Access(kept.kubeconfig("beta"))
    assert works(access)
    # Another kubeconfig of the same member is taken; one of another member is not.
    put_kubeconfig(place, "of-beta", beta.plane.admin_token_kubeconfig.read_text())
    wait_until(
        lambda: works(access) and "admin-token" in users_of(beta),
        TRUTH_SECONDS,
        "the new kubeconfig is used",
    )
    put_kubeconfig(place, "of-beta", alpha.plane.kubeconfig.read_text())
    wait_until(
        lambda: reason(place, "beta", "KubeconfigAccepted") == "OtherMember",
        TRUTH_SECONDS,
        "refused",
    )
    assert works(access) and row(place, "beta")["READY"] == "True"
    place.kubectl.quiet(
        "delete", "clusters.tower.dev", "beta", f"--timeout={DELETED_SECONDS}s"
    )
    wait_until(lambda: not works(access), TRUTH_SECONDS, "cut")
    assert "of-beta" in place.secrets()  # it was not ours
    # By the command line: an object and a Secret appear.
    kubeconfig = str(beta.plane.kubeconfig)
    kept.admin("cluster", "add", "beta", "--kubeconfig", kubeconfig)
    wait_for(place, "beta", READY="True", TYPE="direct")
    assert "tower-kubeconfig-beta" in place.secrets()
    kept.admin("cluster", "remove", "beta", "--yes")
    wait_until(lambda: "beta" not in place.clusters(), TRUTH_SECONDS, "gone")


def users_of(member: Member) -> set[str]:
    """Who asked the member's apiserver as somebody else, of late."""
    events = member.plane.audit_events()[-200:]
    return {e["user"]["username"] for e in events if "impersonatedUser" in e}


def test_what_happens_during_an_outage_is_told_after_it(
    kept: Tower, place: Host, alpha: Member
) -> None:
    join(kept, place, alpha)
    wait_for(place, "alpha", READY="True")
    place.plane.kill("kube-apiserver")
    try:
        kept.agents["alpha"].process.kill()
        wait_until(
            lambda: kept.cluster("alpha")["state"] == "away",
            TRUTH_SECONDS,
            "the command line is as true as ever",
        )
    finally:
        place.plane.restart("kube-apiserver")
        place.plane.wait_ready()
    wait_for(place, "alpha", AFTER_OUTAGE_SECONDS, READY="False", REASON="AgentAway")
    kept.agents["alpha"].process.start()
    wait_for(place, "alpha", AFTER_OUTAGE_SECONDS, READY="True")


# Pauses of watches, lease and queue at their longest, one after the other.
AFTER_OUTAGE_SECONDS = 10.0
# Until a server that died without a word is out of its lease, and its successor has settled.
SUCCESSION_SECONDS = 20.0


def test_two_servers_do_not_fight_and_the_second_takes_over(
    kept: Tower, place: Host, alpha: Member, new_tower: Callable[..., Tower]
) -> None:
    join(kept, place, alpha)
    wait_for(place, "alpha", READY="True")
    second = new_tower(arguments=place.arguments())
    # The second one knows no tunnel, and would say that the agent is away.
    time.sleep(SETTLED_SECONDS)
    assert row(place, "alpha")["READY"] == "True"
    before = place.clusters()["alpha"]["metadata"]["resourceVersion"]
    time.sleep(QUIET_SECONDS)
    assert place.clusters()["alpha"]["metadata"]["resourceVersion"] == before
    kept.server.kill()
    wait_for(place, "alpha", SUCCESSION_SECONDS, READY="False", REASON="AgentAway")
    # It knows all that the first one knew, and acts.
    assert second.cluster("alpha")["joined"]
    place.kubectl.quiet(
        "delete", "clusters.tower.dev", "alpha", f"--timeout={DELETED_SECONDS}s"
    )
    assert second.run_admin("cluster", "show", "alpha").returncode == 3


# Longer than a server leaves alone what it cannot know yet.
SETTLED_SECONDS = 5.0
QUIET_SECONDS = 3.0


def test_the_rules_of_the_chart_are_enough_and_all_are_needed(
    kept: Tower, place: Host, alpha: Member
) -> None:
    # Every kind of thing that a server does: a member that comes by the command line,
    kept.join(alpha)
    wait_for(place, "alpha", READY="True")
    kept.admin("cluster", "remove", "alpha", "--yes")
    wait_until(lambda: "alpha" not in place.clusters(), TRUTH_SECONDS, "gone")
    # one that is declared, joins, and goes,
    (kept.directory / "agent-alpha").rename(kept.directory / "old")
    kept.agents.pop("alpha").process.stop()
    join(kept, place, alpha)
    wait_for(place, "alpha", READY="True")
    # an object that is taken away past its finalizer.
    patch = ["patch", "clusters.tower.dev", "alpha", "--type=merge", "-p"]
    place.kubectl.quiet("delete", "clusters.tower.dev", "alpha", "--wait=false")
    place.kubectl.run(*patch, '{"metadata": {"finalizers": null}}')
    declare(place, "gamma")
    invitation(place, "gamma")
    kept.server.kill()
    patch[2] = "gamma"
    place.kubectl.quiet(*patch, '{"metadata": {"finalizers": null}}')
    place.kubectl.quiet("delete", "clusters.tower.dev", "gamma")
    kept.start()
    wait_until(
        lambda: (
            json.loads(kept.admin("cluster", "list", "-o", "json"))["clusters"] == []
        ),
        TRUTH_SECONDS,
        "nothing is left",
    )
    used, refused = set(), []
    for event in place.plane.audit_events():
        if event["user"]["username"] == place.user and "objectRef" in event:
            thing = event["objectRef"]
            resource = "/".join(
                thing[part] for part in ("resource", "subresource") if part in thing
            )
            used.add((thing.get("apiGroup", ""), resource, event["verb"]))
            if event.get("responseStatus", {}).get("code") == 403:
                refused.append(event)
    assert refused == []
    assert used == place.rules()


PAUSE = '{"spec": {"paused": true}}'


def transition(place: Host, kind: str) -> str:
    found = place.clusters()["alpha"]["status"]["conditions"]
    return str(next(c["lastTransitionTime"] for c in found if c["type"] == kind))
