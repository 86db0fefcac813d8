"""pytest fixtures: the real control planes `member_a` and `member_b`, one of each a test session.

Without a binary and without Go the tests that want one are skipped with one line that says
what is missing; where CI is set they fail. Where only the build is missing, it happens before
the first test: no test's timeout has to allow for it.
"""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.testbed import binary
from tests.testbed.controlplane import ControlPlane

__all__ = ["member_a", "member_b", "pytest_collection_finish"]

FIXTURES = {"member_a", "member_b"}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the binary if a collected test wants it, with progress on the terminal."""
    wanted = any(
        FIXTURES & set(getattr(item, "fixturenames", ())) for item in session.items
    )
    if not wanted or session.config.option.collectonly or binary.missing():
        return
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    report = terminal.write_line if terminal is not None else print
    capture = session.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            binary.build(report)
        except binary.BuildFailed as error:
            pytest.exit(f"testbed: {error}", returncode=1)


@pytest.fixture(scope="session")
def member_a(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real control plane, shared by the session: leave it as you found it."""
    yield from _control_plane("member-a", tmp_path_factory)


@pytest.fixture(scope="session")
def member_b(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A second one, with another PKI, other data and other tokens."""
    yield from _control_plane("member-b", tmp_path_factory)


def _control_plane(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    if reason := binary.missing():
        if os.environ.get("CI"):
            pytest.fail(f"in CI the real control plane must be there: {reason}")
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp(name)
    with ControlPlane(name, directory) as control_plane:
        yield control_plane
    # pytest keeps the folders of three runs: the logs are worth it, 126 MB of etcd's files are not.
    shutil.rmtree(directory / "etcd", ignore_errors=True)
