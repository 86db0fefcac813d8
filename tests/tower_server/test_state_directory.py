"""The state directory and its lock: one server at a time, and a sentence for everything else."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shared.program import ProgramFailed
from tower_server.state_directory import LOCK_NAME, locked_state_directory


def test_it_is_made_for_us_alone_and_locked_while_in_use(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "state"
    with locked_state_directory(directory) as path:
        assert path == directory
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "ca").stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / LOCK_NAME).stat().st_mode) == 0o600
        with pytest.raises(ProgramFailed) as caught:
            with locked_state_directory(directory):
                pass
        assert f"process {os.getpid()}" in str(caught.value)
        assert str(directory) in str(caught.value)
        assert "--state-dir" in str(caught.value)
    with locked_state_directory(directory):
        pass


def test_the_lock_is_freed_when_the_body_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with locked_state_directory(tmp_path / "state"):
            raise ZeroDivisionError
    with locked_state_directory(tmp_path / "state"):
        pass


def test_a_killed_servers_lock_is_free(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from tower_server.state_directory import locked_state_directory\n"
        "with locked_state_directory(pathlib.Path(sys.argv[1])):\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "state")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(ProgramFailed, match=f"process {process.pid}"):
            with locked_state_directory(tmp_path / "state"):
                pass
        process.kill()
    with locked_state_directory(tmp_path / "state"):
        pass


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ProgramFailed, match=r"chmod 700 .*\.$"):
        with locked_state_directory(tmp_path):
            pass


def test_a_file_or_a_link_in_its_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ProgramFailed, match="--state-dir"):
            with locked_state_directory(path):
                pass
    directory = tmp_path / "state"
    (directory / "ca").mkdir(mode=0o700, parents=True)
    directory.chmod(0o700)
    (directory / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ProgramFailed, match="--state-dir"):
        with locked_state_directory(directory):
            pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_noisy_lock_file_names_no_process(tmp_path: Path) -> None:
    with locked_state_directory(tmp_path / "state") as directory:
        (directory / LOCK_NAME).write_bytes(b"\xff\x1b[31m")
        with pytest.raises(ProgramFailed, match="Another tower-server runs"):
            with locked_state_directory(directory):
                pass
