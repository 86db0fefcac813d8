"""The host cluster of a server whose state lies in Kubernetes, as the chart sets it up.

The server runs as a ServiceAccount with exactly the rules of charts/tower-server/files/rbac.yaml.
"""

from pathlib import Path
from typing import Any

import yaml

from tests.e2e.member import Member
from tests.e2e.tower import wait_until
from tests.fakes.kubernetes_store import new_namespace
from tests.testbed.controlplane import ControlPlane

__all__ = ["Host"]

RULES = Path(__file__).resolve().parents[2] / "charts/tower-server/files/rbac.yaml"
RBAC = "rbac.authorization.k8s.io"
ACCOUNT = "tower-server"


class Host:
    """One Tower's place on the host's control plane."""

    def __init__(self, plane: ControlPlane, homes: Path) -> None:
        self.plane = plane
        self.namespace = new_namespace(plane)
        self._cluster = Member("host", plane, homes)
        # The host's admin.
        self.kubectl = self._cluster.admin
        self._cluster.apply(*self._objects())

    def arguments(self) -> tuple[str, ...]:
        """Options of `tower-server serve`."""
        kubeconfig = self.plane.service_account_kubeconfig(self.namespace, ACCOUNT)
        return (
            *("--store", "kubernetes", "--namespace", self.namespace),
            *("--host-kubeconfig", str(kubeconfig)),
        )

    def apply(self, *documents: dict[str, Any]) -> None:
        self._cluster.apply(*documents)

    def clusters(self) -> dict[str, dict[str, Any]]:
        """All Cluster objects by name."""
        path = "/apis/tower.dev/v1alpha1/clusters"
        # An apiserver that is just back serves its CRDs a moment after it is ready.
        wait_until(lambda: self.plane.request("GET", path)[0] == 200, 20, path)
        _, answer = self.plane.request("GET", path)
        return {item["metadata"]["name"]: item for item in answer["items"]}

    def secrets(self) -> dict[str, dict[str, Any]]:
        """All Secrets of the namespace by name."""
        path = f"/api/v1/namespaces/{self.namespace}/secrets"
        _, answer = self.plane.request("GET", path)
        return {item["metadata"]["name"]: item for item in answer["items"]}

    @property
    def user(self) -> str:
        """Who the server is to the apiserver."""
        return f"system:serviceaccount:{self.namespace}:{ACCOUNT}"

    def rules(self) -> set[tuple[str, str, str]]:
        """What it may do: (group, resource, verb)."""
        return {
            (group, resource, verb)
            for rules in yaml.safe_load(RULES.read_text()).values()
            for rule in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    def clear(self) -> None:
        """Take every Cluster away, whether or not a server is there to see it."""
        for name in self.clusters():
            patch = ["patch", "cluster.tower.dev", name, "--type=merge"]
            self.kubectl.run(*patch, "-p", '{"metadata": {"finalizers": null}}')
            self.kubectl.run("delete", "cluster.tower.dev", name, "--ignore-not-found")

    def _objects(self) -> list[dict[str, Any]]:
        rules = yaml.safe_load(RULES.read_text())
        account = {"name": ACCOUNT, "namespace": self.namespace}
        return [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
            *_bound("Cluster", self.namespace, account, rules["clusterRules"]),
            *_bound("", self.namespace, account, rules["namespaceRules"]),
        ]


def _bound(
    scope: str, namespace: str, account: dict[str, str], rules: list[Any]
) -> list[dict[str, Any]]:
    metadata = {"name": f"{ACCOUNT}-{namespace}"}
    if not scope:
        metadata["namespace"] = namespace
    reference = {"apiGroup": RBAC, "kind": f"{scope}Role", "name": metadata["name"]}
    role = {"apiVersion": f"{RBAC}/v1", "kind": f"{scope}Role", "metadata": metadata}
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "kind": f"{scope}RoleBinding",
        "metadata": metadata,
        "roleRef": reference,
        "subjects": [{"kind": "ServiceAccount", **account}],
    }
    return [{**role, "rules": rules}, binding]
