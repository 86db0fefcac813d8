"""A member of the e2e tests: a real control plane, and what its own admin does to it.

The admin applies the agent's manifest and hands the agent a kubeconfig of its
ServiceAccount, so that the manifest's RBAC is what is tested.
"""

from pathlib import Path
from typing import Any

import yaml

from tests.e2e.kubectl import Kubectl
from tests.testbed.controlplane import ControlPlane

__all__ = ["Member"]


class Member:
    """One control plane with its admin's kubectl."""

    def __init__(self, name: str, plane: ControlPlane, homes: Path) -> None:
        # The cluster's name in Tower; the control plane does not know it.
        self.name = name
        self.plane = plane
        # Under which each kubeconfig gets a HOME of its own, for kubectl's cache.
        self._homes = homes
        self.admin = self.kubectl(plane.kubeconfig)

    def kubectl(self, kubeconfig: Path, *, home: Path | None = None) -> Kubectl:
        """kubectl with a kubeconfig, and with a HOME of its own unless given."""
        home = home or self._homes / f"{self.name}-{kubeconfig.stem}"
        home.mkdir(parents=True, exist_ok=True)
        return Kubectl(self.plane.kubectl, kubeconfig, home)

    def apply(self, *documents: dict[str, Any]) -> None:
        """Apply objects as the member's admin."""
        self.admin.quiet("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One API request past kubectl and past the tunnel, which has to succeed."""
        status, answer = self.plane.request(method, path, body)
        assert status < 300, f"{method} {path}: {status} {answer}"
        return answer

    def grant(
        self, name: str, subject: dict[str, str], *rules: dict[str, list[str]]
    ) -> None:
        """Bind a ClusterRole of its own name with these rules to a subject."""
        group = "rbac.authorization.k8s.io"
        role = {"apiGroup": group, "kind": "ClusterRole", "name": name}
        self.apply(
            {
                "apiVersion": f"{group}/v1",
                "kind": "ClusterRole",
                "metadata": {"name": name},
                "rules": list(rules),
            },
            {
                "apiVersion": f"{group}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": name},
                "roleRef": role,
                "subjects": [subject],
            },
        )

    def allow_to_act_as(
        self,
        name: str,
        subject: dict[str, str],
        *,
        users: list[str],
        groups: list[str],
    ) -> None:
        """Let a subject impersonate exactly these users and groups."""
        self.grant(
            name,
            subject,
            *(
                {
                    "apiGroups": [""],
                    "resources": [resource],
                    "verbs": ["impersonate"],
                    "resourceNames": names,
                }
                for resource, names in (("users", users), ("groups", groups))
                if names
            ),
        )
