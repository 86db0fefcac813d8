"""The member's manifest and env file: valid, least rights, and no harm when applied again.

Covered: YAML, order, RBAC by name, pod security, no secret in arguments, the Secret without data,
hostile names, the env file as docker and systemd read it.
"""

from typing import Any

import pytest
import yaml

from certs.joining import JoinString, new_token
from certs.names import parse_cluster_name
from tower_agent.settings import parse_agent_settings
from tower_server.manifest import MemberManifest, env_file


def join_string() -> JoinString:
    token_id, secret = new_token()
    return JoinString(
        cluster=parse_cluster_name("alpha"),
        host="tower.example.com",
        port=8443,
        token_id=token_id,
        secret=secret,
        pin="sha256:" + "ab" * 32,
    )


@pytest.fixture
def join() -> JoinString:
    return join_string()


def objects(manifest: MemberManifest) -> list[dict[str, Any]]:
    """The objects as an apiserver would read them from the text."""
    read = list(yaml.safe_load_all(manifest.to_yaml()))
    assert read == manifest.objects()
    return read


def one(manifest: MemberManifest, kind: str, name: str) -> dict[str, Any]:
    (found,) = [
        item
        for item in objects(manifest)
        if (item["kind"], item["metadata"]["name"]) == (kind, name)
    ]
    return found


def container(manifest: MemberManifest) -> dict[str, Any]:
    (only,) = one(manifest, "Deployment", "tower-agent")["spec"]["template"]["spec"][
        "containers"
    ]
    return only


def test_the_namespace_comes_first_and_everything_else_finds_it(
    join: JoinString,
) -> None:
    first, *others = objects(MemberManifest(join=join))
    assert (first["kind"], first["metadata"]["name"]) == ("Namespace", "tower-agent")
    cluster_wide = {"ClusterRole", "ClusterRoleBinding"}
    for item in others:
        namespace = item["metadata"].get("namespace")
        assert namespace == (None if item["kind"] in cluster_wide else "tower-agent")


def test_the_agent_may_act_as_the_named_users_and_groups_only(join: JoinString) -> None:
    manifest = MemberManifest(
        join=join, allow_users=("tower:admin", "jane"), allow_groups=("dev",)
    )
    rules = one(manifest, "ClusterRole", "tower-agent")["rules"]
    impersonating = {
        rule["resources"][0]: rule.get("resourceNames")
        for rule in rules
        if rule["verbs"] == ["impersonate"]
    }
    assert impersonating == {"users": ["tower:admin", "jane"], "groups": ["dev"]}
    assert all(
        "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"]
        for rule in rules
    )


def test_a_star_is_the_right_without_names(join: JoinString) -> None:
    manifest = MemberManifest(
        join=join, allow_users=("*",), allow_groups=("*", "system:masters")
    )
    rules = one(manifest, "ClusterRole", "tower-agent")["rules"]
    assert all(
        "resourceNames" not in rule
        for rule in rules
        if rule["verbs"] == ["impersonate"]
    )


def test_no_names_at_all_is_a_mistake_and_not_the_right_to_all(
    join: JoinString,
) -> None:
    with pytest.raises(AssertionError, match="no users"):
        MemberManifest(join=join, allow_users=()).objects()


def test_the_default_group_is_bound_to_cluster_admin(join: JoinString) -> None:
    binding = one(
        MemberManifest(join=join), "ClusterRoleBinding", "tower-cluster-admins"
    )
    assert binding["roleRef"]["name"] == "cluster-admin"
    assert [subject["name"] for subject in binding["subjects"]] == [
        "tower:cluster-admins"
    ]


def test_other_groups_are_bound_by_the_members_admin(join: JoinString) -> None:
    names = {
        item["metadata"]["name"]
        for item in objects(MemberManifest(join=join, allow_groups=("x",)))
    }
    assert "tower-cluster-admins" not in names


def test_the_agent_reads_and_patches_one_secret(join: JoinString) -> None:
    assert one(MemberManifest(join=join), "Role", "tower-agent")["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "verbs": ["get", "patch"],
            "resourceNames": ["tower-agent-credentials"],
        }
    ]


def test_the_credentials_secret_has_no_data_that_applying_would_own(
    join: JoinString,
) -> None:
    secret = one(MemberManifest(join=join), "Secret", "tower-agent-credentials")
    assert not {"data", "stringData"} & secret.keys()


def test_the_join_string_is_in_its_secret_and_nowhere_else(join: JoinString) -> None:
    manifest = MemberManifest(join=join)
    assert one(manifest, "Secret", "tower-agent-join")["stringData"] == {
        "join": join.format()
    }
    assert manifest.to_yaml().count(join.secret.reveal()) == 1
    assert join.secret.reveal() not in repr(manifest)
    (env,) = container(manifest)["env"]
    # Optional: the agent starts again after that Secret was deleted.
    assert env["valueFrom"]["secretKeyRef"] == {
        "name": "tower-agent-join",
        "key": "join",
        "optional": True,
    }


def test_the_pod_passes_the_restricted_standard(join: JoinString) -> None:
    manifest = MemberManifest(join=join)
    pod = one(manifest, "Deployment", "tower-agent")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(manifest)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container(manifest)["resources"]["limits"].keys() == {"memory"}


def test_the_agent_understands_its_arguments(join: JoinString) -> None:
    manifest = MemberManifest(
        join=join, allow_users=("jane",), allow_groups=("dev", "ops")
    )
    given: dict[str, list[str]] = {}
    for argument in container(manifest)["args"]:
        flag, _, value = argument.partition("=")
        given.setdefault(flag, []).append(value)
    settings = parse_agent_settings(
        state_secret=given["--state-secret"][0],
        health=given["--health"][0],
        allow_users=given["--allow-user"],
        allow_groups=given["--allow-group"],
    )
    assert str(settings.state_secret) == "tower-agent/tower-agent-credentials"
    assert settings.allow_users == {"jane"} and settings.allow_groups == {"dev", "ops"}


def test_names_that_mean_something_in_yaml_stay_names(join: JoinString) -> None:
    hostile = ("yes", "1e3", "a: b", "#x", "- x\n---\nkind: Secret", "{{x}}", "ünïcode")
    manifest = MemberManifest(join=join, allow_users=hostile)
    rules = one(manifest, "ClusterRole", "tower-agent")["rules"]
    assert rules[0]["resourceNames"] == list(hostile)


def test_the_env_file_is_read_alike_by_docker_and_systemd(join: JoinString) -> None:
    lines = env_file(join).splitlines()
    assignments = dict(
        line.split("=", 1) for line in lines if line and not line.startswith("#")
    )
    assert JoinString.parse(assignments["TOWER_JOIN"]) == join
    assert assignments.keys() == {
        "TOWER_JOIN",
        "TOWER_AGENT_STATE_DIR",
        "TOWER_AGENT_KUBECONFIG",
    }
    # No quotes, which docker keeps; no blanks, dollars or backslashes, which shells and systemd read.
    assert not set("\"'\\$ ") & set("".join(assignments.values()))


def test_a_name_with_a_dollar_is_no_variable_to_the_kubelet(join: JoinString) -> None:
    manifest = MemberManifest(
        join=join, allow_users=("$(TOWER_JOIN)",), allow_groups=("a$b",)
    )
    arguments = container(manifest)["args"]
    assert "--allow-user=$$(TOWER_JOIN)" in arguments
    assert "--allow-group=a$$b" in arguments
    rules = one(manifest, "ClusterRole", "tower-agent")["rules"]
    assert rules[0]["resourceNames"] == ["$(TOWER_JOIN)"]
