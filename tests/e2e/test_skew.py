"""One version apart: this server with the previous agent, the previous server with this agent.

The previous version runs from its wheel (tests/skew). Covered, both ways: join, requests, exec,
a watch that survives a cut and a restart of the agent; then the upgrade in place, server first,
each with the state that the version before left behind.
"""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.version import VERSION
from tests.e2e.kubectl import Kubectl
from tests.e2e.member import Member
from tests.e2e.neighbours import host_port
from tests.e2e.script import ready_box
from tests.e2e.tower import ROOT, AgentOptions, Tower
from tests.fakes.faults import FaultyRelay

(WHEEL,) = (ROOT / "tests" / "skew").glob("*.whl")
PREVIOUS = WHEEL.name.split("-")[1]

REPAIR_SECONDS = 10


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the programs are those of the previous version."""
    directory = tmp_path_factory.mktemp("previous")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(directory)
    return {"PYTHONPATH": str(directory)}


@pytest.fixture
def own_namespace(alpha: Member) -> Iterator[Callable[[Tower], Kubectl]]:
    """kubectl through a Tower in a namespace of the test's own, with a pod in it."""
    made: list[Kubectl] = []

    def make(tower: Tower) -> Kubectl:
        kubectl = alpha.kubectl(tower.kubeconfig("alpha")).variant(namespace="skew")
        kubectl.quiet("create", "namespace", "skew")
        made.append(kubectl)
        kubectl.quiet("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
        ready_box(kubectl)
        return kubectl

    yield make
    if made:
        alpha.admin.quiet("delete", "namespace", "skew", "--wait")


def test_the_previous_version_is_one_behind() -> None:
    ours, theirs = VERSION.split("."), PREVIOUS.split(".")
    assert (ours[0], int(ours[1]) - 1) == (theirs[0], int(theirs[1])), (
        "tests/skew/README.md says how to renew the wheel"
    )


@pytest.mark.parametrize("old", ["agent", "server"])
def test_one_version_apart_nothing_is_missing(
    old: str,
    previous: dict[str, str],
    alpha: Member,
    new_tower: Callable[..., Tower],
    own_namespace: Callable[[Tower], Kubectl],
) -> None:
    tower = new_tower(environment=previous if old == "server" else {})
    with FaultyRelay(host_port(tower.address)) as relay:
        agent = tower.join(
            alpha,
            AgentOptions(
                through=relay.address,
                environment=previous if old == "agent" else {},
            ),
        )
        assert tower.cluster("alpha")["agent_version"].endswith(
            PREVIOUS if old == "agent" else VERSION
        )
        kubectl = own_namespace(tower)
        kubectl.quiet("create", "configmap", "counter", "--from-literal=n=0")
        shown = ("-o", "jsonpath={.data.n}{'\\n'}")
        with kubectl.start("get", "configmap/counter", "--watch", *shown) as watch:
            watch.next_line("0")
            relay.cut()
            patch = '{"data":{"n":"1"}}'
            kubectl.quiet("patch", "configmap/counter", "--patch", patch)
            watch.next_line("1")
        big = kubectl.quiet("exec", "box", "--", "head", "-c", "3000000", "/dev/zero")
        assert len(big) == 3_000_000
        agent.process.kill()
        agent.process.start()
        agent.wait_ready()
        tower.wait_connected("alpha", REPAIR_SECONDS)
        assert "counter" in kubectl.quiet("get", "configmaps", "-o", "name")


def test_an_upgrade_keeps_what_the_version_before_left(
    previous: dict[str, str], alpha: Member, new_tower: Callable[..., Tower]
) -> None:
    tower = new_tower(environment=previous)
    agent = tower.join(alpha, AgentOptions(environment=previous))
    kubectl = alpha.kubectl(tower.kubeconfig("alpha"))

    tower.server.stop()
    tower.use_environment({})
    tower.start()
    tower.wait_connected("alpha", REPAIR_SECONDS)
    assert "1 agent (alpha) older than the server" in tower.admin("status")
    assert "default" in kubectl.quiet("get", "namespaces", "-o", "name")

    agent.process.stop()
    agent.process.environment["PYTHONPATH"] = str(ROOT)
    agent.process.start()
    agent.wait_ready()
    assert "older than" not in tower.admin("status")
    assert "default" in kubectl.quiet("get", "namespaces", "-o", "name")


def test_the_wheel_is_a_release_and_not_this_checkout(
    previous: dict[str, str],
) -> None:
    version = Path(previous["PYTHONPATH"]) / "shared" / "version.py"
    assert PREVIOUS in version.read_text() and VERSION not in version.read_text()
