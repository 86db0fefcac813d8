"""pytest fixtures: the real control planes `member_a` and `member_b`, one of each a test session.

Without a binary and without Go the tests that want one are skipped with one line that says
what is missing; where CI is set they fail. Where only the build is missing, it happens before
the first test: no test's timeout has to allow for it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed import binary
from tests.testbed.controlplane import ControlPlane

__all__ = ["helm", "host", "member_a", "member_b", "pytest_collection_finish"]

# Which program a test needs that asks for a fixture.
FIXTURES = {
    "host": binary.KUBELAB,
    "member_a": binary.KUBELAB,
    "member_b": binary.KUBELAB,
    "helm": binary.HELM,
}

CRDS = Path(__file__).resolve().parents[2] / "charts" / "tower-server" / "crds"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the programs that collected tests want, with progress on the terminal."""
    fixtures = {
        name for item in session.items for name in getattr(item, "fixturenames", ())
    }
    wanted = {
        FIXTURES[name].name: FIXTURES[name] for name in FIXTURES.keys() & fixtures
    }
    buildable = [program for program in wanted.values() if not program.missing()]
    if not buildable or session.config.option.collectonly:
        return
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    report = terminal.write_line if terminal is not None else print
    capture = session.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            for program in buildable:
                program.build(report)
        except binary.BuildFailed as error:
            pytest.exit(f"testbed: {error}", returncode=1)


@pytest.fixture(scope="session")
def helm() -> Path:
    """The program helm, of the version that tests/testbed/helm/go.mod pins."""
    _need(binary.HELM)
    return binary.HELM.path()


@pytest.fixture(scope="session")
def member_a(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real control plane, shared by the session: leave it as you found it."""
    yield from _control_plane("member-a", tmp_path_factory)


@pytest.fixture(scope="session")
def member_b(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A second one, with another PKI, other data and other tokens."""
    yield from _control_plane("member-b", tmp_path_factory)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One for the host, with Tower's CRDs. Tests may kill its apiserver; they bring it up again."""
    for control_plane in _control_plane("host", tmp_path_factory):
        kubectl = [control_plane.kubectl, "--kubeconfig", control_plane.kubeconfig]
        subprocess.run([*kubectl, "apply", "-f", CRDS], check=True, capture_output=True)
        wait = ["wait", "--for=condition=Established", "crd", "--all"]
        subprocess.run([*kubectl, *wait], check=True, capture_output=True)
        # Established is said a little before it is served.
        get = ["get", "clusters.tower.dev", "-o", "name"]
        while subprocess.run([*kubectl, *get], capture_output=True).returncode:
            time.sleep(0.1)
        yield control_plane


def _control_plane(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    _need(binary.KUBELAB)
    directory = tmp_path_factory.mktemp(name)
    with ControlPlane(name, directory) as control_plane:
        yield control_plane
    # pytest keeps the folders of three runs: the logs are worth it, 126 MB of etcd's files are not.
    shutil.rmtree(directory / "etcd", ignore_errors=True)


def _need(program: binary.GoProgram) -> None:
    if reason := program.missing():
        if os.environ.get("CI"):
            pytest.fail(f"in CI {program.name} must be there: {reason}")
        pytest.skip(reason)
