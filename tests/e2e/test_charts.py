"""The charts on real control planes, with the pods' processes run as the charts say.

Covered: the image's root file system has what the programs need and nothing more, and runs
read-only as nobody; what the charts render is accepted by a real apiserver; the agent joins from
a chart, keeps its credentials over an upgrade and a re-install, and is ready when its tunnel stands;
the server runs from a chart on another control plane, with its state there, and survives a new pod.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.chart import Chart
from tests.charts.pod import Pod, can_run_pods
from tests.charts.test_tower_agent import EVERYTHING as AGENT_EVERYTHING
from tests.charts.test_tower_server import EVERYTHING as SERVER_EVERYTHING
from tests.charts.test_tower_server import NEEDED as SERVER_NEEDED
from tests.e2e.kubectl import clean_environment
from tests.e2e.member import Member
from tests.e2e.neighbours import free_port
from tests.e2e.tower import ROOT, Tower, program, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(can_run_pods()), reason=str(can_run_pods())),
]

# The bound for an image; what a registry stores is about a third.
MAX_IMAGE_MB = 120

# A namespace of its own for each test: one that is being deleted takes nothing in.
_numbers = itertools.count(1)

# By the Prometheus operator, the Gateway API and cert-manager, which are not installed here.
DEFINED_ELSEWHERE = {
    *("PodMonitor", "ServiceMonitor", "PrometheusRule"),
    *("TLSRoute", "Certificate"),
}


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


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tower-agent", AGENT_EVERYTHING),
        ("tower-server", SERVER_EVERYTHING),
        ("tower-server", SERVER_NEEDED | {"service": {"type": "LoadBalancer"}}),
        ("tower-server", SERVER_NEEDED | {"service": {"type": "ClusterIP"}}),
    ],
)
def test_a_real_apiserver_accepts_all_that_a_chart_renders(
    alpha: Member, helm: Path, name: str, values: dict[str, Any]
) -> None:
    objects = Chart(helm=helm, name=name).render(values, namespace="default")
    objects = [item for item in objects if item["kind"] not in DEFINED_ELSEWHERE]
    text = yaml.safe_dump_all(objects)
    alpha.admin.quiet(
        "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
    )


class Pods:
    """Runs the pods of Deployments in one namespace of any member."""

    def __init__(self, image: Path, directory: Path) -> None:
        self._image = image
        self.directory = directory
        self.namespace = f"tower-chart-{next(_numbers)}"
        self.pods: list[Pod] = []

    def start(
        self, member: Member, deployment: str, ports: dict[int, int] | None = None
    ) -> Pod:
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{deployment}"
        home = self.directory / f"pod-{len(self.pods)}"
        spec = member.request("GET", path)
        pod = Pod(member.plane, spec, self._image, home, ports)
        self.pods.append(pod)
        pod.process.start()
        return pod


@pytest.fixture
def pods(alpha: Member, beta: Member, image: Path, tmp_path: Path) -> Iterator[Pods]:
    """All pods, and their namespaces, end with the test."""
    pods = Pods(image, tmp_path)
    yield pods
    for pod in reversed(pods.pods):
        pod.process.stop()
    for member in (alpha, beta):
        member.admin.quiet(
            *(
                "delete",
                "namespace",
                pods.namespace,
                "--ignore-not-found",
                "--wait=false",
            )
        )


def test_the_agent_joins_from_its_chart_and_keeps_its_key(
    alpha: Member,
    helm: Path,
    pods: Pods,
    new_tower: Callable[..., Tower],
) -> None:
    tower = new_tower()
    chart = Chart(helm=helm, name="tower-agent")
    join = tower.admin("token", "create", "alpha").strip()

    def install(values: dict[str, Any]) -> None:
        chart.install(alpha.plane.kubeconfig, "tower-agent", pods.namespace, values)

    install({"join": {"string": join}, "terminationGracePeriodSeconds": 5})
    pod = pods.start(alpha, "tower-agent")
    pod.process.wait_for_line("tower-agent ready")
    tower.wait_connected("alpha", 5)
    assert pod.probe("livenessProbe") == pod.probe("readinessProbe") == 200
    through = alpha.kubectl(tower.kubeconfig("alpha"))
    assert "default" in through.quiet("get", "namespaces", "-o", "name")
    pod.process.stop()

    # An upgrade without a token, and even a new install, find the agent's key where it was.
    install({"log": {"level": "debug"}})
    chart.uninstall(alpha.plane.kubeconfig, "tower-agent", pods.namespace)
    install({})
    pod = pods.start(alpha, "tower-agent")
    pod.process.wait_for_line("tower-agent ready")

    # Not ready without a tunnel, but alive: a restart would not help.
    tower.server.kill()
    wait_until(lambda: pod.probe("readinessProbe") == 503, 10, "not ready")
    assert pod.probe("livenessProbe") == 200


def test_server_and_agent_run_from_their_charts(
    alpha: Member, beta: Member, helm: Path, pods: Pods
) -> None:
    """beta is the host here, alpha the member."""
    port = free_port()
    values = {"publicAddress": f"127.0.0.1:{port}", "drainTime": "1s"}
    Chart(helm=helm, name="tower-server").install(
        beta.plane.kubeconfig, "tower-server", pods.namespace, values
    )
    server = pods.start(beta, "tower-server", {8443: port})
    server.process.wait_for_line("tower-server ready")
    assert server.probe("livenessProbe") == server.probe("readinessProbe") == 200

    def admin(*arguments: str) -> str:
        socket = server.volume("run") / "admin"
        done = subprocess.run(
            program(
                "tower_server.admin_cli",
                "--socket",
                str(socket / "admin.sock"),
                *arguments,
            ),
            env=clean_environment(PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr + server.process.log_tail()
        return done.stdout

    join = admin("token", "create", "alpha").strip()
    Chart(helm=helm, name="tower-agent").install(
        alpha.plane.kubeconfig,
        "tower-agent",
        pods.namespace,
        {"join": {"string": join}},
    )
    agent = pods.start(alpha, "tower-agent")
    agent.process.wait_for_line("tower-agent ready")
    kubeconfig = pods.directory / "alpha.kubeconfig"
    admin("kubeconfig", "alpha", "--out", str(kubeconfig))
    through = alpha.kubectl(kubeconfig)
    assert "default" in through.quiet("get", "namespaces", "-o", "name")

    # A new pod knows what the one before knew: it lies in the host's Secrets.
    server.process.stop()
    server = pods.start(beta, "tower-server", {8443: port})
    server.process.wait_for_line("tower-server ready")
    wait_until(lambda: agent.probe("readinessProbe") == 200, 10, "the tunnel")
    assert "default" in through.quiet("get", "namespaces", "-o", "name")
    assert "alpha" in admin("cluster", "list")
