"""What is shipped beside the wheel: the Dockerfile and the systemd units.

Covered: the Dockerfile copies every package and ends without root; the units start commands that
exist, restart always, and systemd itself accepts them where it is there.
"""

import configparser
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
each_unit = pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)


def test_the_dockerfile_copies_every_package() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert f"COPY {package} {package}\n" in text


def test_the_final_stage_is_empty_and_not_root() -> None:
    final = (ROOT / "Dockerfile").read_text().split("FROM scratch\n")[1]
    assert "USER 65532:65532\n" in final and "RUN" not in final


@each_unit
def test_a_unit_starts_one_of_our_commands(path: Path) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read_string(path.read_text())
    program, command = unit["Service"]["ExecStart"].split()
    assert Path(program).name in PROJECT["project"]["scripts"]
    assert command in {"serve", "run"} and unit["Service"]["Restart"] == "always"
    assert unit["Service"]["NoNewPrivileges"] == "yes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@each_unit
def test_systemd_accepts_a_unit(path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    complaints = [
        line
        for line in done.stderr.splitlines()
        # The command is not installed on this machine.
        if path.name in line and "is not executable" not in line
    ]
    assert complaints == []
