"""The member of the demo: a cluster of the user's, the real control plane, or the demo apiserver."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.demo.shell import Failed, Shell
from tests.testbed.binary import KUBELAB
from tests.testbed.controlplane import ControlPlane, ControlPlaneFailed

__all__ = ["Member", "start_member"]

# Outside of Kubernetes nobody applies the agent's manifest, which has this in it.
_BINDING = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: tower-demo}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: "tower:cluster-admins"}
"""


@dataclass(frozen=True)
class Member:
    """A cluster that the agent can reach."""

    kubeconfig: Path
    kubectl: str | None  # None: no kubectl anywhere; the Python client shows the tables
    close: Callable[[], None]


def start_member(shell: Shell) -> Member:
    """Start the member, or take the user's, and say which."""
    own = os.environ.get("KUBECONFIG_MEMBER")
    if own:
        return _own_cluster(shell, Path(own))
    if KUBELAB.path().exists():
        return _real_control_plane(shell)
    return _demo_apiserver(shell)


def _own_cluster(shell: Shell, kubeconfig: Path) -> Member:
    kubectl = shutil.which("kubectl")
    if not kubeconfig.is_file():
        raise Failed(f"KUBECONFIG_MEMBER={kubeconfig} is not a file.")
    if kubectl is None:
        raise Failed("KUBECONFIG_MEMBER needs kubectl in PATH.")
    shell.step(
        f"The member: your cluster of {kubeconfig}. While this runs, the group",
        "tower:cluster-admins is bound to cluster-admin there (ClusterRoleBinding tower-demo).",
    )
    _bind(shell, kubectl, kubeconfig)

    def close() -> None:
        command = [kubectl, "--kubeconfig", str(kubeconfig)]
        command += ["delete", "clusterrolebinding", "tower-demo"]
        subprocess.run(command, capture_output=True, timeout=30)

    return Member(kubeconfig, kubectl, close)


def _real_control_plane(shell: Shell) -> Member:
    shell.step("The member: a real Kubernetes control plane, on loopback (5 s).")
    plane = ControlPlane("member", shell.folder / "member")
    try:
        plane.start()
    except ControlPlaneFailed as error:
        raise Failed(str(error)) from error
    _bind(shell, str(plane.kubectl), plane.kubeconfig)
    return Member(plane.kubeconfig, str(plane.kubectl), plane.stop)


def _demo_apiserver(shell: Shell) -> Member:
    shell.step(
        "The member: a demo apiserver in memory. `make testbed` builds a real control plane,",
        "which is then used here; KUBECONFIG_MEMBER=path takes a cluster of yours.",
    )
    directory = shell.folder / "member"
    directory.mkdir()
    shell.start(
        "member",
        [
            "tests.fakes.apiserver",
            "--dir",
            str(directory),
            "--name",
            "member",
            "--with-parent",
        ],
        shown="(started)",
        ready="ready ",
    )
    return Member(directory / "admin.kubeconfig", shutil.which("kubectl"), lambda: None)


def _bind(shell: Shell, kubectl: str, kubeconfig: Path) -> None:
    binding = shell.folder / "binding.yaml"
    binding.write_text(_BINDING)
    shell.run([kubectl, "--kubeconfig", str(kubeconfig), "apply", "-f", str(binding)])
