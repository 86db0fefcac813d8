"""The command `tower-server`: its help, wrong usage, and one real server process from start to stop."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tower_server.cli import cli


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TOWER_"):
            monkeypatch.delenv(name)


@contextmanager
def serving(
    directory: Path, *arguments: str, module: str = "tower_server", **environment: str
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, "serve", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "TOWER_STATE_DIR": str(directory),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_help_groups_the_options_and_names_their_variables() -> None:
    text = CliRunner().invoke(cli, ["serve", "--help"]).stdout
    for part in (
        "Addresses",
        "State and administration",
        "Metrics and logging",
        "TOWER_LISTEN",
    ):
        assert part in text
    assert "tower-server ready on HOST:PORT" in text


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert re.fullmatch(r"tower-server \d+\.\d+\.\d+\n", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--state-dir (or TOWER_STATE_DIR) is missing"),
        (["--state-dir", "s"], "--public-address (or TOWER_PUBLIC_ADDRESS) is missing"),
        (["--state-dir", "s", "--listen", "x"], "--listen 'x' has no port"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], sentence: str
) -> None:
    result = CliRunner().invoke(cli, ["serve", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr and result.stderr.count("\n") == 1


def test_settings_come_from_the_environment_too() -> None:
    environment = {
        "TOWER_STATE_DIR": "s",
        "TOWER_LISTEN": "127.0.0.1:0",
        "TOWER_ZONE": "-",
    }
    result = CliRunner().invoke(cli, ["serve"], env=environment)
    assert "--zone: '-' cannot be the zone" in result.stderr


def test_it_serves_is_administered_and_stops_without_a_trace(tmp_path: Path) -> None:
    state = tmp_path / "state"
    entry = ["--tcp-entry", "127.0.0.1:0=alpha/web"]
    with serving(state, "--listen", "127.0.0.1:0", *entry) as process:
        assert re.fullmatch(
            r"tcp entry 127\.0\.0\.1:\d+ -> alpha/web\n", ready_line(process)
        )
        ready = re.fullmatch(
            r"tower-server ready on (127\.0\.0\.1):(\d+)\n", ready_line(process)
        )
        assert ready is not None
        created = subprocess.run(
            [
                sys.executable,
                "-m",
                "tower_server.admin_cli",
                "token",
                "create",
                "alpha",
            ],
            env={"PATH": os.environ["PATH"], "TOWER_STATE_DIR": str(state)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert f"@{ready[1]}:{ready[2]}?pin=" in created.stdout, created.stderr
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    assert (output, process.returncode) == ("", 0)
    assert "Traceback" not in errors
    assert not (state / "admin.sock").exists()
    # What it made is its own.
    assert {oct(path.stat().st_mode & 0o077) for path in state.rglob("*.key")} == {
        "0o0"
    }


def test_an_address_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(tmp_path / "s", "--listen", f"127.0.0.1:{port}") as process:
            output, errors = process.communicate(timeout=20)
    assert (output, process.returncode) == ("", 1)
    assert f"127.0.0.1:{port} (Address already in use): stop what" in errors
    assert "Traceback" not in errors


def test_a_second_server_on_the_same_state_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "s"
    with serving(state, "--listen", "127.0.0.1:0") as first:
        assert "ready" in ready_line(first)
        with serving(state, "--listen", "127.0.0.1:0") as second:
            output, errors = second.communicate(timeout=20)
        assert (output, second.returncode) == ("", 1)
        assert "Another tower-server" in errors and "Traceback" not in errors
        assert (state / "admin.sock").exists()


def test_a_killed_server_s_place_is_taken_by_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        with serving(tmp_path / "s", "--listen", "127.0.0.1:0") as process:
            assert "ready" in ready_line(process)
            process.kill()


def test_logs_can_be_json(tmp_path: Path) -> None:
    import json

    arguments = ["--listen", "127.0.0.1:0", "--log-format", "json"]
    with serving(tmp_path / "s", *arguments) as process:
        assert "ready" in ready_line(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert all(json.loads(line)["level"] for line in errors.splitlines())
