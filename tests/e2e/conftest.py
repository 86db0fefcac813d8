"""Fixtures of the e2e tests: two members, one Tower that both have joined, and two ways in.

Control planes and the Tower are started once per session, when the first test wants them.
Tests that need a Tower of their own (another link, another proxy) make one with `new_tower`.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.kinds import PROXY, SEALED
from tests.e2e.kubectl import Kubectl
from tests.e2e.member import Member
from tests.e2e.neighbours import free_port
from tests.e2e.tower import AgentOptions, Tower
from tests.testbed.controlplane import ControlPlane


@pytest.fixture(scope="session")
def workspace() -> Iterator[Path]:
    """A folder with a short path: Unix sockets lie in it, whose paths have 107 bytes at most.

    Kept when E2E_KEEP is set, for reading the logs.
    """
    directory = Path(tempfile.mkdtemp(prefix="tower-e2e-"))
    yield directory
    if not os.environ.get("E2E_KEEP"):
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def alpha(member_a: ControlPlane, workspace: Path) -> Member:
    """The member that most tests use."""
    return Member("alpha", member_a, workspace / "homes")


@pytest.fixture(scope="session")
def beta(member_b: ControlPlane, workspace: Path) -> Member:
    """A second member, for what must never get mixed up."""
    return Member("beta", member_b, workspace / "homes")


@pytest.fixture
def new_tower() -> Iterator[Callable[..., Tower]]:
    """Makes Towers of a test's own, started and empty; all end with the test."""
    towers: list[Tower] = []

    def make(
        *,
        port: int = 0,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Tower:
        directory = Path(tempfile.mkdtemp(prefix="tower-e2e-own-"))
        tower = Tower(
            directory, port=port, arguments=arguments, environment=environment
        )
        towers.append(tower)
        tower.start()
        return tower

    yield make
    for tower in towers:
        tower.stop()
        if not os.environ.get("E2E_KEEP"):
            shutil.rmtree(tower.directory, ignore_errors=True)


def _running(directory: Path) -> Iterator[Tower]:
    """A Tower that runs until the session is over."""
    directory.mkdir()
    tower = Tower(directory, port=free_port())
    tower.start()
    try:
        yield tower
    finally:
        tower.stop()


@pytest.fixture(scope="session")
def _session_tower(workspace: Path) -> Iterator[Tower]:
    yield from _running(workspace / "tower")


@pytest.fixture
def kind() -> str:
    """How alpha is connected; `kinds.BOTH_KINDS` has a test run for both."""
    return PROXY


@pytest.fixture
def face() -> str:
    """By which face alpha is used; `kinds.WAYS` has a test run for both."""
    return SEALED


@pytest.fixture(scope="session")
def _direct_tower(workspace: Path) -> Iterator[Tower]:
    """A second Tower: one would refuse the same member under a second name."""
    yield from _running(workspace / "direct")


@pytest.fixture
def tower(kind: str, alpha: Member, request: pytest.FixtureRequest) -> Tower:
    """The session's Tower, whole, with alpha joined (or added) and connected."""
    tower: Tower
    if kind == PROXY:
        tower = request.getfixturevalue("_session_tower")
        return _joined(tower, alpha, AgentOptions())
    tower = request.getfixturevalue("_direct_tower")
    tower.repair()
    if alpha.name not in tower.added:
        tower.add(alpha)
    return tower


@pytest.fixture
def tower_of_two(tower: Tower, beta: Member) -> Tower:
    """The session's Tower with both members joined; beta keeps its credentials in a Secret."""
    return _joined(tower, beta, AgentOptions(in_secret=True))


def _joined(tower: Tower, member: Member, options: AgentOptions) -> Tower:
    tower.repair()
    if member.name not in tower.agents:
        tower.join(member, options)
    return tower


@pytest.fixture
def direct(alpha: Member) -> Kubectl:
    """kubectl straight at alpha's apiserver, as the user of Tower's kubeconfigs."""
    groups = ("tower:cluster-admins",)
    return alpha.kubectl(alpha.plane.client_kubeconfig("tower:admin", groups))


@pytest.fixture
def tunnelled(tower: Tower, alpha: Member, face: str) -> Kubectl:
    """kubectl with the kubeconfig that Tower wrote for alpha."""
    if face == SEALED:
        return alpha.kubectl(tower.kubeconfig("alpha"))
    written = tower.kubeconfig("alpha", "--face", face, name=f"alpha-{face}")
    return alpha.kubectl(written)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is an e2e test."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
