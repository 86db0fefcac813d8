"""`make run` on a machine that has Python and nothing else: no kubectl, no real control plane.

Also: nothing is left behind, and a member that is not there is one sentence.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: pytest's own are longer than a unix socket's may be."""
    with tempfile.TemporaryDirectory(prefix="demo-") as path:
        yield Path(path)


def demo(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the demo as a machine without Go, kubectl and test bed would."""
    kept = ("HOME", "LANG", "LD_LIBRARY_PATH")
    commands = folder / "bin"
    commands.mkdir()
    echo = shutil.which("echo")  # what the demo's pod runs
    assert echo is not None
    (commands / "echo").symlink_to(echo)
    return subprocess.run(
        [sys.executable, "-m", "tests.demo"],
        cwd=ROOT,
        env={name: os.environ[name] for name in kept if name in os.environ}
        | {
            "PATH": str(commands),
            "TMPDIR": str(folder),
            "TOWER_TESTBED_CACHE": str(folder),
            "ONCE": "1",
        }
        | environ,
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_with_python_only_it_ends_with_tables_and_an_exec_through_the_tunnel(
    folder: Path,
) -> None:
    result = demo(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "tower-agent ready: alpha connected to 127.0.0.1:" in result.stdout
    assert "member-node-0" in result.stdout
    assert "default/web-0" in result.stdout
    assert result.stdout.endswith("-- echo hello)\nhello\n")
    assert result.stderr == ""
    assert [path.name for path in folder.iterdir()] == ["bin"], "left behind"


def test_a_member_that_is_not_there_is_one_sentence(folder: Path) -> None:
    missing = folder / "nowhere.kubeconfig"
    result = demo(folder, KUBECONFIG_MEMBER=str(missing))
    assert result.returncode == 1
    assert result.stderr == f"\nKUBECONFIG_MEMBER={missing} is not a file.\n"
