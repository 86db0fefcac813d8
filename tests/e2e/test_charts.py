"""The charts on real control planes, with the pods' processes run as the charts say.

Covered: the image's root file system has what the programs need and nothing more, and runs
read-only as nobody; what the charts render is accepted by a real apiserver; the agent joins from
a chart, keeps its credentials over an upgrade and a re-install, and is ready when its tunnel stands.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.chart import Chart
from tests.charts.pod import Pod, can_run_pods
from tests.charts.test_tower_agent import EVERYTHING
from tests.e2e.member import Member
from tests.e2e.tower import ROOT, Tower, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(can_run_pods()), reason=str(can_run_pods())),
]

# The bound for an image; what a registry stores is about a third.
MAX_IMAGE_MB = 120

NAMESPACE = "tower-chart"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's root file system, made by the script that the Dockerfile runs."""
    root = tmp_path_factory.mktemp("image") / "rootfs"
    script = ROOT / "deploy" / "rootfs.sh"
    done = subprocess.run(
        ["sh", str(script), str(root), sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for directory in (root, *root.parents[:3]):
        directory.chmod(
            0o755
        )  # pytest's folders are ours alone, the pods' user is another
    return root


def test_the_image_is_small(image: Path) -> None:
    megabytes = sum(path.lstat().st_size for path in image.rglob("*")) / 1e6
    assert megabytes < MAX_IMAGE_MB


def test_the_image_has_no_shell_and_no_package_manager(image: Path) -> None:
    names = {path.name for path in image.rglob("*")}
    assert not names & {"sh", "bash", "busybox", "pip", "apt-get", "setuptools"}


def test_a_real_apiserver_accepts_all_that_the_agents_chart_renders(
    alpha: Member, helm: Path
) -> None:
    objects = Chart(helm=helm, name="tower-agent").render(
        EVERYTHING, namespace="default"
    )
    # Their definition comes with the Prometheus operator.
    objects = [item for item in objects if item["kind"] != "PodMonitor"]
    text = yaml.safe_dump_all(objects)
    alpha.admin.quiet(
        "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
    )


@pytest.fixture
def start(alpha: Member, image: Path, tmp_path: Path) -> Iterator[Callable[[str], Pod]]:
    """Runs the pod of a Deployment in alpha; all end with the test."""
    pods: list[Pod] = []

    def run(deployment: str) -> Pod:
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{deployment}"
        pod = Pod(
            alpha.plane,
            alpha.request("GET", path),
            image,
            tmp_path / f"pod-{len(pods)}",
        )
        pods.append(pod)
        pod.process.start()
        return pod

    yield run
    for pod in pods:
        pod.process.stop()
    alpha.admin.quiet(
        "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"
    )


def test_the_agent_joins_from_its_chart_and_keeps_its_key(
    alpha: Member,
    helm: Path,
    start: Callable[[str], Pod],
    new_tower: Callable[..., Tower],
) -> None:
    tower = new_tower()
    chart = Chart(helm=helm, name="tower-agent")
    join = tower.admin("token", "create", "alpha").strip()

    def install(values: dict[str, Any]) -> None:
        chart.install(alpha.plane.kubeconfig, "tower-agent", NAMESPACE, values)

    install({"join": {"string": join}, "terminationGracePeriodSeconds": 5})
    pod = start("tower-agent")
    pod.process.wait_for_line("tower-agent ready")
    tower.wait_connected("alpha", 5)
    assert pod.probe("livenessProbe") == pod.probe("readinessProbe") == 200
    through = alpha.kubectl(tower.kubeconfig("alpha"))
    assert "default" in through.quiet("get", "namespaces", "-o", "name")
    pod.process.stop()

    # An upgrade without a token, and even a new install, find the agent's key where it was.
    install({"log": {"level": "debug"}})
    chart.uninstall(alpha.plane.kubeconfig, "tower-agent", NAMESPACE)
    install({})
    pod = start("tower-agent")
    pod.process.wait_for_line("tower-agent ready")

    # Not ready without a tunnel, but alive: a restart would not help.
    tower.server.kill()
    wait_until(lambda: pod.probe("readinessProbe") == 503, 10, "not ready")
    assert pod.probe("livenessProbe") == 200
