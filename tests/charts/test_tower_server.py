"""The chart of the server: what it renders, and what it refuses.

Covered: lint; wrong values are refused with a sentence; everything optional renders; rights come
from files/rbac.yaml alone; the restricted pod security standard; alerts and dashboard use metrics
that exist; probes and ports fit the arguments.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.chart import Chart, ChartRefused, only

ROOT = Path(__file__).resolve().parents[2]

NEEDED: dict[str, Any] = {"publicAddress": "tower.example.com:8443"}
EVERYTHING: dict[str, Any] = NEEDED | {
    "image": {"digest": "sha256:" + "a" * 64},
    "imagePullSecrets": ["registry"],
    "ca": {
        "certManager": {
            "enabled": True,
            "issuerRef": {"name": "root", "kind": "ClusterIssuer"},
        }
    },
    "extraArgs": ["--log-level=debug"],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "extraEnvFrom": [{"configMapRef": {"name": "proxies"}}],
    "service": {
        "type": "NodePort",
        "nodePort": 30443,
        "annotations": {"example.com/a": "b"},
    },
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "host": "tower.example.com",
        "tlsSecret": "tower-tls",
    },
    "tlsRoute": {"enabled": True, "parentRefs": [{"name": "edge"}]},
    "serviceAccount": {"annotations": {"example.com/role": "x"}},
    "podDisruptionBudget": {"enabled": True},
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {}}],
        "extraEgress": [{"ports": [{"port": 80}]}],
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True},
    "podAnnotations": {"example.com/a": "b"},
    "podLabels": {"team": "platform"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
}


@pytest.fixture(scope="module")
def chart(helm: Path) -> Chart:
    return Chart(helm=helm, name="tower-server")


@pytest.mark.parametrize("values", [NEEDED, EVERYTHING], ids=["needed", "everything"])
def test_helm_lint_has_no_complaint(chart: Chart, values: dict[str, Any]) -> None:
    chart.lint(values)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"publicAddress": ""}, "publicAddress is needed"),
        ({"publicAddress": "tower.example.com"}, "does not match pattern"),
        ({"zone": "Tower"}, "/zone"),
        ({"replicas": 2}, "/replicas"),
        ({"service": {"type": "ExternalName"}}, "/service/type"),
        ({"ingress": {"enabled": True}}, "ingress.host is needed"),
        ({"tlsRoute": {"enabled": True}}, "tlsRoute.parentRefs is needed"),
        ({"ca": {"certManager": {"enabled": True}}}, "issuerRef is needed"),
        (
            {"ca": {"existingSecret": "ca", "certManager": {"enabled": True}}},
            "exclude each other",
        ),
        ({"imagee": {}}, "'imagee' not allowed"),
    ],
)
def test_wrong_values_are_refused(
    chart: Chart, values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ChartRefused, match=complaint):
        chart.render(NEEDED | values)


def test_everything_optional_renders(chart: Chart) -> None:
    optional = {
        *("PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor", "PrometheusRule"),
        *("ConfigMap", "Ingress", "TLSRoute", "Certificate"),
    }
    assert {item["kind"] for item in chart.render(EVERYTHING)} >= optional
    assert optional.isdisjoint(item["kind"] for item in chart.render(NEEDED))


def test_rights_come_from_the_one_file_that_says_them(chart: Chart) -> None:
    rules = yaml.safe_load((chart.directory / "files" / "rbac.yaml").read_text())
    objects = chart.render(NEEDED)
    assert only(objects, "ClusterRole")["rules"] == rules["clusterRules"]
    assert only(objects, "Role")["rules"] == rules["namespaceRules"]


def test_the_pods_meet_the_restricted_standard(chart: Chart) -> None:
    pod = pod_spec(chart.render(EVERYTHING))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_services_and_probes_lead_to_ports_of_the_pod(chart: Chart) -> None:
    objects = chart.render(EVERYTHING)
    container = pod_spec(objects)["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    listening = {
        int(match)
        for word in container["args"]
        for match in re.findall(r"0\.0\.0\.0:(\d+)", word)
    }
    assert set(ports.values()) == listening
    for item in objects:
        if item["kind"] == "Service":
            assert {p["targetPort"] for p in item["spec"]["ports"]} <= set(ports)
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports


def test_the_number_of_pods_can_be_left_to_somebody_else(chart: Chart) -> None:
    objects = chart.render(NEEDED | {"replicas": None})
    assert "replicas" not in only(objects, "Deployment")["spec"]


def test_the_sealed_face_has_its_names_at_the_gateway(chart: Chart) -> None:
    route = only(chart.render(EVERYTHING), "TLSRoute")
    assert route["spec"]["hostnames"] == [
        "*.clusters.tower.internal",
        "tower.example.com",
    ]


@pytest.mark.parametrize("name", ["alerts.yaml", "dashboard.json"])
def test_alerts_and_dashboard_use_metrics_that_exist(chart: Chart, name: str) -> None:
    text = (chart.directory / "files" / name).read_text()
    known = set(re.findall(r"^\| `(tower_\w+)", (ROOT / "README.md").read_text(), re.M))
    used = set(re.findall(r"\b(tower_\w+)\b", text)) - {"tower_metrics"}
    assert used and used <= known


def test_the_dashboard_is_json_in_the_config_map(chart: Chart) -> None:
    data = only(chart.render(EVERYTHING), "ConfigMap")["data"]
    assert json.loads(data["tower.json"])["title"] == "Tower"


def pod_spec(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(only(objects, "Deployment")["spec"]["template"]["spec"])
