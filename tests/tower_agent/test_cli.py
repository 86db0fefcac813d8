"""The command `tower-agent`: its help, wrong usage, where the join string may come from, the check."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tower_agent import cli as agent_cli
from tower_agent.cli import cli
from tower_agent.settings import AgentSettings

JOIN = "tower+join://alpha:k3v9m2x7qaht.c2VjcmV0c2VjcmV0c2VjcmV0@tower.example.com:8443?pin=sha256:00"


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TOWER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[AgentSettings]:
    """Instead of running the agent, keep the settings that it would get."""
    settings: list[AgentSettings] = []

    async def run(given: AgentSettings) -> None:
        settings.append(given)

    monkeypatch.setattr("tower_agent.app.run", run)
    # Both are for a process of its own.
    monkeypatch.setattr(agent_cli, "set_up_logging", lambda settings: None)
    monkeypatch.setattr(os, "umask", lambda mask: 0)
    return settings


def run_agent(*arguments: str, **settings: Any) -> Any:
    return CliRunner().invoke(cli, ["run", *arguments], **settings)


def unreachable_kubeconfig(directory: Path) -> Path:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    path = directory / "member.kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "m",
        "clusters": [{"name": "m", "cluster": {"server": f"https://127.0.0.1:{port}"}}],
        "users": [{"name": "m", "user": {"token": "t"}}],
        "contexts": [{"name": "m", "context": {"cluster": "m", "user": "m"}}],
    }
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    return path


def test_help_groups_the_options_and_names_their_variables() -> None:
    text = run_agent("--help").stdout
    for part in (
        "Joining and credentials",
        "What the host may do",
        "TOWER_JOIN",
        "HTTPS_PROXY",
    ):
        assert part in text


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert re.fullmatch(r"tower-agent \d+\.\d+\.\d+\n", result.stdout)


def test_without_a_place_for_its_key_it_is_wrong_usage() -> None:
    result = run_agent()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--state-dir DIR outside Kubernetes" in result.stderr


def test_flags_become_settings(started: list[AgentSettings], tmp_path: Path) -> None:
    kubeconfig = unreachable_kubeconfig(tmp_path)
    result = run_agent(
        *("--state-dir", str(tmp_path), "--kubeconfig", str(kubeconfig)),
        *("--target", "web=127.0.0.1:80", "--target", "db=127.0.0.1:81"),
        *("--allow-user", "jane", "--allow-group", "dev", "--allow-group", "ops"),
    )
    assert result.exit_code == 0, result.output
    (settings,) = started
    assert settings.kubeconfig == kubeconfig
    assert [target.name for target in settings.targets] == ["web", "db"]
    assert settings.allow_users == {"jane"}
    assert settings.allow_groups == {"dev", "ops"}


def test_so_does_the_environment(started: list[AgentSettings], tmp_path: Path) -> None:
    environment = {
        "TOWER_AGENT_STATE_SECRET": "tower-agent/credentials",
        "TOWER_AGENT_TARGETS": "web=127.0.0.1:80 db=127.0.0.1:81",
        "TOWER_AGENT_ALLOW_GROUPS": "dev ops",
        "TOWER_AGENT_HEALTH": "127.0.0.1:0",
        # Of other programs; not ours to read.
        "KUBECONFIG": str(tmp_path / "other"),
    }
    result = run_agent(env=environment)
    assert result.exit_code == 0, result.output
    (settings,) = started
    assert str(settings.state_secret) == "tower-agent/credentials"
    assert settings.kubeconfig is None
    assert [target.name for target in settings.targets] == ["web", "db"]
    assert settings.allow_groups == {"dev", "ops"}
    assert settings.health is not None


def test_the_join_string_in_the_environment_is_not_left_there(
    started: list[AgentSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWER_JOIN", JOIN)
    assert run_agent("--state-dir", str(tmp_path)).exit_code == 0
    assert started[0].join is not None and started[0].join.read() == JOIN
    assert "TOWER_JOIN" not in os.environ


def test_the_join_string_cannot_be_an_argument(started: list[AgentSettings]) -> None:
    for arguments in (["--join-file", JOIN], ["--join", JOIN], [JOIN]):
        result = run_agent("--state-dir", "s", *arguments)
        assert result.exit_code == 2
    assert started == []


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_member_that_does_not_answer_is_one_sentence(
    tmp_path: Path, command: str
) -> None:
    arguments = ["--kubeconfig", str(unreachable_kubeconfig(tmp_path))]
    given = None
    if command == "run":
        arguments += ["--state-dir", str(tmp_path / "state"), "--join-file", "-"]
        secret = "c2VjcmV0" * 4
        pin = "sha256:" + "0" * 64
        given = f"tower+join://alpha:k3v9m2x7qaht.{secret}@127.0.0.1:1?pin={pin}\n"
    result = subprocess.run(
        [sys.executable, "-m", "tower_agent", command, *arguments],
        env={"PATH": os.environ["PATH"]},
        input=given,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    sentences = [
        line for line in result.stderr.splitlines() if line.startswith("Error: ")
    ]
    assert len(sentences) == 1 and "127.0.0.1:" in sentences[0]
    assert "Traceback" not in result.stderr
