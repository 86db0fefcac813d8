"""The chart of the agent: what it renders, what it refuses, and that it is the manifest's twin.

Covered: lint; wrong values are refused with a sentence; everything optional renders; rights,
security and arguments are those of `tower token create --format manifest`; the restricted
pod security standard; a join string is never an argument.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.joining import JoinString, new_token
from certs.names import parse_cluster_name
from tests.charts.chart import Chart, ChartRefused, only
from tower_server.manifest import MemberManifest

EVERYTHING: dict[str, Any] = {
    "image": {"digest": "sha256:" + "a" * 64},
    "imagePullSecrets": ["registry"],
    "join": {"string": "tower+join://alpha:id.secret@tower.example.com:8443?pin=x"},
    "targets": [{"name": "grafana", "address": "grafana.monitoring:80"}],
    "outerTLS": {"caConfigMap": "corporate-ca"},
    "replicas": 2,
    "extraArgs": ["--log-level=debug"],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "extraEnvFrom": [{"configMapRef": {"name": "proxies"}}],
    "serviceAccount": {"annotations": {"example.com/role": "x"}},
    "podDisruptionBudget": {"enabled": True},
    "networkPolicy": {
        "enabled": True,
        "extraEgress": [{"ports": [{"port": 80}]}],
    },
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "podAnnotations": {"example.com/a": "b"},
    "podLabels": {"team": "platform"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
}


@pytest.fixture(scope="module")
def chart(helm: Path) -> Chart:
    return Chart(helm=helm, name="tower-agent")


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_helm_lint_has_no_complaint(chart: Chart, values: dict[str, Any]) -> None:
    chart.lint(values)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replica": 2}, "'replica' not allowed"),
        ({"replicas": "two"}, "want integer"),
        ({"image": {"tag": "latest"}}, "/image/tag"),
        ({"image": {"digest": "a" * 64}}, "does not match pattern"),
        ({"host": {"allowUsers": []}}, "minItems"),
        ({"join": {"string": "alpha"}}, "does not match pattern"),
        ({"targets": [{"name": "web", "address": "web"}]}, "/targets/0/address"),
        ({"log": {"level": "verbose"}}, "/log/level"),
    ],
)
def test_wrong_values_are_refused(
    chart: Chart, values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ChartRefused, match=complaint):
        chart.render(values)


def test_everything_optional_renders(chart: Chart) -> None:
    kinds = {item["kind"] for item in chart.render(EVERYTHING)}
    assert kinds >= {"PodDisruptionBudget", "NetworkPolicy", "PodMonitor", "Secret"}
    assert {"PodDisruptionBudget", "NetworkPolicy", "PodMonitor"}.isdisjoint(
        item["kind"] for item in chart.render()
    )


def test_a_digest_goes_before_the_tag(chart: Chart) -> None:
    image = container(chart.render(EVERYTHING))["image"]
    assert image == "tower@sha256:" + "a" * 64


def test_the_pods_meet_the_restricted_standard(chart: Chart) -> None:
    pod = only(chart.render(EVERYTHING), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_join_string_is_no_argument(chart: Chart) -> None:
    deployment = only(chart.render(EVERYTHING), "Deployment")
    assert "tower+join" not in yaml.safe_dump(deployment)


def test_rights_and_pod_are_those_of_the_manifest(chart: Chart) -> None:
    release = {"release": "tower-agent", "namespace": "tower-agent"}
    ours = chart.render({"join": {"existingSecret": "tower-agent-join"}}, **release)
    token_id, secret = new_token()
    join = JoinString(
        cluster=parse_cluster_name("alpha"),
        host="tower.example.com",
        port=8443,
        token_id=token_id,
        secret=secret,
        pin="sha256:" + "0" * 64,
    )
    theirs = MemberManifest(join=join).objects()
    for kind in ("ClusterRole", "Role"):
        assert only(ours, kind)["rules"] == only(theirs, kind)["rules"]
    pod, other = pod_spec(ours), pod_spec(theirs)
    for name in ("serviceAccountName", "enableServiceLinks"):
        assert pod[name] == other[name]
    assert other["securityContext"].items() <= pod["securityContext"].items()
    mine, twin = container(ours), container(theirs)
    for name in ("command", "env", "ports", "securityContext", "resources"):
        assert mine[name] == twin[name]
    assert set(twin["args"]) <= set(mine["args"])


def test_the_star_leaves_the_check_to_the_agent(chart: Chart) -> None:
    host = {"allowUsers": ["*"], "allowGroups": ["dev"]}
    objects = chart.render({"host": host})
    users, groups = only(objects, "ClusterRole")["rules"][:2]
    assert "resourceNames" not in users and groups["resourceNames"] == ["dev"]
    # Nobody is bound to cluster-admin whose group is not allowed.
    assert not [o for o in objects if o["metadata"]["name"].endswith("-admins")]


def test_two_releases_in_one_cluster_do_not_meet(chart: Chart) -> None:
    names = [
        {
            (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
            for item in chart.render(release=release, namespace=namespace)
        }
        for release, namespace in [("one", "a"), ("two", "a"), ("one", "b")]
    ]
    assert not names[0] & names[1] and not names[0] & names[2]


def pod_spec(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(only(objects, "Deployment")["spec"]["template"]["spec"])


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(pod_spec(objects)["containers"][0])
