"""Who the member sees, and who decides: the caller's own name, and the member's RBAC.

Covered: the audit log's impersonatedUser; the member's own 403 for a user without rights;
--as exactly for those whom the member lets impersonate; names that the agent never acts as;
kubeconfigs that Tower refuses to write.
"""

import uuid
from typing import Any

import pytest

from tests.e2e.kinds import BOTH_KINDS
from tests.e2e.kubectl import Kubectl, normalised
from tests.e2e.member import Member
from tests.e2e.tower import EXTRA_USERS, Tower, wait_until

pytestmark = BOTH_KINDS

# Somebody whom no allow-list of these tests names.
STRANGER = "stranger"


def kubectl_as(tower: Tower, member: Member, user: str, *groups: str) -> Kubectl:
    """kubectl with a kubeconfig that Tower wrote for this user."""
    arguments = ["--user", user]
    for group in groups:
        arguments += ["--group", group]
    return member.kubectl(tower.kubeconfig(member.name, *arguments, name=user))


def audited(member: Member, name: str) -> dict[str, Any]:
    """The audit event of the one request for an object of this name."""
    events = [
        event
        for event in member.plane.audit_events()
        if event.get("objectRef", {}).get("name") == name
    ]
    assert len(events) == 1, events
    return events[0]


def unique_name() -> str:
    return f"asked-for-{uuid.uuid4().hex[:8]}"


def test_the_audit_log_names_the_kubeconfigs_user(tower: Tower, alpha: Member) -> None:
    for user, groups in (
        ("tower:admin", ("tower:cluster-admins",)),
        ("carol", ("dev",)),
    ):
        name = unique_name()
        # Whether carol may read it does not matter: also a refusal is audited.
        kubectl_as(tower, alpha, user, *groups).run("get", "configmap", name)
        event = audited(alpha, name)
        assert event["user"]["username"] == tower.acts_in("alpha")
        assert event["impersonatedUser"]["username"] == user
        assert set(groups) <= set(event["impersonatedUser"]["groups"])
        assert not any(
            group.startswith("system:serviceaccounts")
            for group in event["impersonatedUser"]["groups"]
        )


def test_a_user_without_rights_gets_the_members_own_403(
    tower: Tower, alpha: Member
) -> None:
    tunnelled = kubectl_as(tower, alpha, "nobody")
    direct = alpha.kubectl(alpha.plane.client_kubeconfig("nobody"))
    for command in (
        ("get", "pods", "--all-namespaces"),
        ("create", "namespace", "mine"),
        ("exec", "box", "--", "true"),
        ("auth", "can-i", "--list"),
        ("get", "--raw", "/metrics"),
    ):
        here, there = direct.run(*command), tunnelled.run(*command)
        assert normalised(str(there), namespace="-") == normalised(
            str(here), namespace="-"
        )
    refused = tunnelled.run("get", "pods", "--all-namespaces")
    assert refused.code == 1
    assert 'User "nobody" cannot list resource "pods"' in refused.err


@pytest.fixture
def carol(tower: Tower, alpha: Member) -> Kubectl:
    """carol may read ConfigMaps and act as bob; bob may read Secrets."""

    def read(resource: str) -> dict[str, list[str]]:
        return {"apiGroups": [""], "resources": [resource], "verbs": ["get", "list"]}

    alpha.grant("carol-reads", {"kind": "User", "name": "carol"}, read("configmaps"))
    alpha.grant("bob-reads", {"kind": "User", "name": "bob"}, read("secrets"))
    alpha.allow_to_act_as(
        "carol-acts", {"kind": "User", "name": "carol"}, users=["bob"], groups=[]
    )
    direct = alpha.kubectl(alpha.plane.client_kubeconfig("carol"))
    wait_until(
        lambda: direct.run("get", "secrets", "--as=bob").code == 0, 10, "grants count"
    )
    return kubectl_as(tower, alpha, "carol")


def test_as_works_for_whom_the_member_lets_impersonate(
    carol: Kubectl, alpha: Member
) -> None:
    carol("get", "configmaps")
    carol("get", "secrets", code=1)
    carol("get", "secrets", "--as=bob")
    # As bob, carol's own rights are gone.
    carol("get", "configmaps", "--as=bob", code=1)
    name = unique_name()
    carol("get", "secret", name, "--as=bob", code=1)
    assert audited(alpha, name)["impersonatedUser"]["username"] == "bob"


def test_as_is_refused_for_all_others_and_never_dropped(carol: Kubectl) -> None:
    # With discovery in kubectl's cache; it does not show why discovery was refused.
    carol("get", "configmaps")
    for flags in (
        ("--as=nobody",),
        ("--as=tower:admin",),
        ("--as=bob", "--as-group=dev"),
    ):
        # carol may do this herself: had --as been dropped, it would work.
        refused = carol.run("get", "configmaps", *flags)
        assert refused.code == 1, refused
        assert "Forbidden" in refused.err
        assert flags[-1].partition("=")[2] in refused.err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--as=system:admin",), "system:admin"),
        (("--as=system:kube-controller-manager",), "system:kube-controller-manager"),
        (("--as=bob", "--as-group=system:masters"), "system:masters"),
        (("--as=bob", "--as-uid=42"), "uid"),
        (("--as=bob", "--as-user-extra=scopes=all"), "xtra"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_system_names_uid_and_extra_are_refused_even_for_an_admin(
    tunnelled: Kubectl, flags: tuple[str, ...], named: str
) -> None:
    tunnelled("get", "configmaps")  # fills kubectl's cache, see above
    refused = tunnelled.run("get", "configmaps", *flags)
    assert refused.code == 1, refused
    assert "Forbidden" in refused.err
    assert named in refused.err


def test_nobody_outside_the_allow_list_is_acted_as(tower: Tower, alpha: Member) -> None:
    assert STRANGER not in EXTRA_USERS
    stranger = kubectl_as(tower, alpha, STRANGER)
    refused = stranger.run("get", "--raw", "/api/v1/namespaces/default/configmaps")
    assert refused.code == 1
    assert "Forbidden" in refused.err
    assert STRANGER in refused.err


def test_no_kubeconfig_for_an_unknown_cluster(tower: Tower) -> None:
    refused = tower.run_admin("kubeconfig", "gamma")
    assert refused.returncode == 3
    assert "gamma" in refused.stderr
    assert not refused.stdout


def test_no_kubeconfig_for_a_system_name(tower: Tower) -> None:
    refused = tower.run_admin("kubeconfig", "alpha", "--user", "system:admin")
    assert refused.returncode not in (0, 3, 4)
    assert "system:" in refused.stderr
    assert not refused.stdout
