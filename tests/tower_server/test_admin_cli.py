"""The command `tower` (kubeconfigs apart) against a real admin API on its real socket.

Aspects: what goes to stdout and what to stderr, exit statuses, empty states, ages in tables and
times in JSON, files with secrets, sockets that do not answer, hostile words of agents, completion.
"""

import json
import os
import re
import socket
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from certs.joining import JoinString
from tests.fakes.admin_server import AdminServer
from tower_server import admin_cli, admin_console
from tower_server.registry import TunnelStatus

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture
def server(tmp_path: Path):
    with AdminServer(tmp_path) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOWER_ADMIN_SOCKET", "TOWER_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)


def tower(server: AdminServer, *arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(
        admin_cli.cli, ["--socket", str(server.socket), *arguments], input=given
    )


def done(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    return result.stdout


def failed(result: Result, exit_code: int) -> str:
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    return result.stderr


def join(server: AdminServer, name: str) -> None:
    server.join(
        done(tower(server, "token", "create", name)), member_uid=f"uid-of-{name}"
    )


# Tokens


def test_the_join_string_stands_alone_on_stdout(server: AdminServer) -> None:
    result = tower(server, "token", "create", "alpha")
    line = done(result)
    assert line.count("\n") == 1
    assert JoinString.parse(line).cluster == "alpha"
    assert JoinString.parse(line).token_id in result.stderr
    assert JoinString.parse(line).secret.reveal() not in result.stderr


def test_a_token_can_be_written_to_a_private_file(
    server: AdminServer, tmp_path: Path
) -> None:
    out = tmp_path / "join"
    result = tower(server, "token", "create", "alpha", "--out", str(out))
    assert done(result) == ""
    assert JoinString.parse(out.read_text())
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert str(out) in result.stderr


def test_a_manifest_can_be_piped_into_kubectl(server: AdminServer) -> None:
    text = done(tower(server, "token", "create", "alpha", "--format", "manifest"))
    assert {"Namespace", "Deployment"} <= {
        item["kind"] for item in yaml.safe_load_all(text)
    }


def test_a_manifest_for_named_users_and_groups_has_no_other(
    server: AdminServer,
) -> None:
    text = done(
        tower(
            server,
            *("token", "create", "alpha", "--format", "manifest"),
            *("--allow-user", "jane", "--allow-user", "joe", "--allow-group", "dev"),
            *("--image", "registry.example.com/agent:1"),
        )
    )
    objects = {item["kind"]: item for item in yaml.safe_load_all(text)}
    users, groups = objects["ClusterRole"]["rules"][:2]
    assert users["resourceNames"] == ["jane", "joe"]
    assert groups["resourceNames"] == ["dev"]
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/agent:1"
    assert [a for a in container["args"] if a.startswith("--allow")] == [
        "--allow-user=jane",
        "--allow-user=joe",
        "--allow-group=dev",
    ]


def test_allowed_names_without_a_manifest_are_wrong_usage(server: AdminServer) -> None:
    result = tower(server, "token", "create", "alpha", "--allow-user", "jane")
    assert "tower-agent run --allow-user" in failed(result, 2)


def test_an_env_file_has_the_join_string(server: AdminServer) -> None:
    text = done(tower(server, "token", "create", "alpha", "--format", "env"))
    assert "\nTOWER_JOIN=tower+join://" in text


def test_a_token_as_json_has_its_id_its_end_and_its_join_string(
    server: AdminServer,
) -> None:
    token = json.loads(
        done(tower(server, "token", "create", "alpha", "--ttl", "90s", "-o", "json"))
    )
    assert JoinString.parse(token["join_string"]).token_id == token["id"]
    assert RFC_3339.fullmatch(token["expires_at"])


def test_tokens_are_listed_with_ages_for_people_and_times_for_machines(
    server: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower(server, "token", "create", "alpha", "--ttl", "1h")
    monkeypatch.setattr(admin_cli, "now", lambda: server.now + timedelta(seconds=192))
    heading, row = done(tower(server, "token", "list")).splitlines()
    assert heading.split() == ["ID", "CLUSTER", "STATE", "CREATED", "EXPIRES"]
    assert row.split(maxsplit=1)[1] == "alpha     ready   3m12s ago   in 56m48s"
    (token,) = json.loads(done(tower(server, "token", "list", "-o", "json")))["tokens"]
    assert RFC_3339.fullmatch(token["created_at"])


def test_a_token_is_revoked_by_its_id(server: AdminServer) -> None:
    token_id = JoinString.parse(
        done(tower(server, "token", "create", "alpha"))
    ).token_id
    assert "is revoked" in tower(server, "token", "revoke", token_id).stderr
    assert "revoked" in done(tower(server, "token", "list"))


def test_revoking_a_used_token_says_that_the_cluster_stays(server: AdminServer) -> None:
    string = done(tower(server, "token", "create", "alpha"))
    server.join(string)
    result = tower(server, "token", "revoke", JoinString.parse(string).token_id)
    assert done(result) == "" and "tower cluster remove alpha" in result.stderr


@pytest.mark.parametrize("ttl", ["8", "forever", "1h 30m", "-1h"])
def test_a_wrong_time_is_wrong_usage(server: AdminServer, ttl: str) -> None:
    assert "such as" in failed(
        tower(server, "token", "create", "alpha", f"--ttl={ttl}"), 2
    )


# Clusters


def test_where_nothing_is_the_next_command_is_said(server: AdminServer) -> None:
    for what in ("cluster", "token"):
        result = tower(server, what, "list")
        assert done(result) == ""
        assert f"No {what}s yet. Next: tower token create alpha" in result.stderr


def test_empty_lists_are_json_too(server: AdminServer) -> None:
    assert json.loads(done(tower(server, "cluster", "list", "-o", "json"))) == {
        "clusters": []
    }
    assert json.loads(done(tower(server, "token", "list", "-o", "json"))) == {
        "tokens": []
    }


def test_clusters_are_listed_with_their_states(
    server: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("alpha", "beta"):
        join(server, name)
    tower(server, "token", "create", "gamma")
    server.registry.connected(
        "alpha",
        since=server.now,
        rtt_seconds=0.0123,
        agent_version="0.1.0",
        apiserver_version="v1.34.1",
        open_streams=3,
    )
    server.registry.away("beta", since=server.now)
    monkeypatch.setattr(admin_cli, "now", lambda: server.now + timedelta(seconds=192))
    lines = done(tower(server, "cluster", "list")).splitlines()
    assert [re.split(r"\s{3,}", line) for line in lines] == [
        ["NAME", "STATE", "SINCE", "RTT", "AGENT", "APISERVER", "STREAMS"],
        ["alpha", "connected", "3m12s ago", "12 ms", "0.1.0", "v1.34.1", "3"],
        ["beta", "away", "3m12s ago", "-", "0.1.0", "-", "0"],
        ["gamma", "never", "-", "-", "-", "-", "0"],
    ]


def test_names_are_never_cut_off_in_a_pipe(server: AdminServer) -> None:
    name = "a" * 63
    join(server, name)
    assert name in done(tower(server, "cluster", "list"))


def test_one_cluster_is_shown_with_everything(server: AdminServer) -> None:
    join(server, "alpha")
    tunnel = TunnelStatus(
        state="active",
        since=datetime.now(UTC) - timedelta(minutes=5),
        rtt_seconds=0.025,
        open_streams=1,
        agent_version="tower-agent/9",
    )
    server.registry.connected(
        "alpha", apiserver_error="connection refused", tunnels=(tunnel,)
    )
    shown = done(tower(server, "cluster", "show", "alpha"))
    for part in (
        "connection refused",
        "active, since 5m ago, 25 ms, 1 stream, tower-agent/9",
        "uid-of-alpha",
        "https://tower.example.com:8443/clusters/alpha",
        "alpha.clusters.tower.internal",
    ):
        assert part in shown
    cluster = json.loads(done(tower(server, "cluster", "show", "alpha", "-o", "json")))
    assert cluster["state"] == "connected" and RFC_3339.fullmatch(cluster["joined_at"])
    (told,) = cluster["tunnels"]
    assert RFC_3339.fullmatch(told.pop("since"))
    assert told == {
        "state": "active",
        "rtt_seconds": 0.025,
        "open_streams": 1,
        "agent_version": "tower-agent/9",
    }


def test_what_an_agent_says_cannot_draw_on_the_terminal(server: AdminServer) -> None:
    join(server, "alpha")
    server.registry.connected(
        "alpha", apiserver_version="v1\x1b[2J\nforged", agent_version="[red]x[/red][/]"
    )
    for arguments in (["cluster", "list"], ["cluster", "show", "alpha"]):
        shown = done(tower(server, *arguments))
        assert "\x1b" not in shown and "\nforged" not in shown
        assert "[red]x[/red][/]" in shown


def test_an_unknown_cluster_is_status_3(server: AdminServer) -> None:
    tower(server, "token", "create", "alpha")
    for arguments in (
        ["cluster", "show", "alhpa"],
        ["cluster", "remove", "alhpa", "--yes"],
        ["kubeconfig", "alhpa"],
    ):
        assert "did you mean alpha?" in failed(tower(server, *arguments), 3)


def test_removing_wants_a_yes_where_nobody_can_be_asked(server: AdminServer) -> None:
    join(server, "alpha")
    assert "add --yes" in failed(tower(server, "cluster", "remove", "alpha"), 2)
    assert server.registry.cuts == []
    result = tower(server, "cluster", "remove", "alpha", "--yes")
    assert done(result) == "" and "its tunnel is cut" in result.stderr
    assert [name for name, _, _ in server.registry.cuts] == ["alpha"]


@pytest.mark.parametrize(
    ("answer", "removed"), [("y\n", True), ("n\n", False), ("", False)]
)
def test_a_person_is_asked_before_a_cluster_is_removed(
    server: AdminServer, monkeypatch: pytest.MonkeyPatch, answer: str, removed: bool
) -> None:
    join(server, "alpha")
    monkeypatch.setattr(admin_cli, "stdin_is_terminal", lambda: True)
    result = tower(server, "cluster", "remove", "alpha", given=answer)
    assert "Cut the tunnel of alpha and forget it?" in result.stderr
    assert (result.exit_code, bool(server.registry.cuts)) == (
        0 if removed else 1,
        removed,
    )


# Status


def test_the_status_is_shown(server: AdminServer) -> None:
    join(server, "alpha")
    shown = done(tower(server, "status"))
    assert "0 connected, 1 away, 0 not joined yet" in shown
    assert server.authority.pin in shown
    status = json.loads(done(tower(server, "status", "-o", "json")))
    assert RFC_3339.fullmatch(status["started_at"])


# Reaching the server


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command as its own process."""
    return subprocess.run(
        [sys.executable, "-m", "tower_server.admin_cli", *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_socket_is_found_by_environment(server: AdminServer) -> None:
    by_socket = run("status", "-o", "json", TOWER_ADMIN_SOCKET=str(server.socket))
    by_state = run("status", "-o", "json", TOWER_STATE_DIR=str(server.directory))
    assert (by_socket.returncode, by_state.returncode) == (0, 0), by_state.stderr
    assert json.loads(by_socket.stdout) == json.loads(by_state.stdout)


def test_without_a_socket_it_says_how_to_name_one() -> None:
    result = run("status")
    assert (result.returncode, result.stdout) == (2, "")
    assert "TOWER_ADMIN_SOCKET" in result.stderr and "--socket" in result.stderr


def test_a_missing_socket_asks_whether_the_server_runs(tmp_path: Path) -> None:
    result = run("--socket", str(tmp_path / "admin.sock"), "status")
    assert (result.returncode, result.stdout) == (4, "")
    assert "is the server running" in result.stderr


def test_a_dead_socket_says_to_start_the_server_again(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "admin.sock"))
    result = run("--socket", str(tmp_path / "admin.sock"), "status")
    assert result.returncode == 4
    assert "start it again" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_socket_of_another_user_says_whose_it_is(server: AdminServer) -> None:
    for directory in (server.directory, *server.directory.parents[:2]):
        directory.chmod(0o755)
    # Not the whole command: another user need not be able to read our Python.
    code = (
        "import os, pathlib, sys\n"
        "from tower_server.admin_client import AdminClient, CommandFailed\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: AdminClient(pathlib.Path(sys.argv[1])).get('status')\n"
        "except CommandFailed as error: print(error.exit_code, error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(server.socket)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.stdout.startswith("5 "), result.stderr
    assert "belongs to user root, group root (mode 0600)" in result.stdout


def test_something_else_on_the_socket_is_not_taken_for_a_server(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(1)
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tower_server.admin_cli",
                "--socket",
                str(path),
                "status",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = other.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")
        _, error = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "not a Tower server" in error


# What goes through


def test_top_once_prints_one_table_with_rates(
    server: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.registry.connected("alpha")
    server.registry.away("beta")
    monkeypatch.setattr(admin_cli, "REFRESH_SECONDS", 0.01)
    lines = done(tower(server, "top", "--once")).splitlines()
    assert [line.split() for line in lines] == [
        (
            "NAME STATE TUNNELS RTT STREAMS IN/s OUT/s QUEUE STALLED STALLS "
            "RESUMES RESENT"
        ).split(),
        "alpha connected 0 - 0 0 B 0 B 0 B 0 0 0 0 B".split(),
        "beta away 0 - 0 0 B 0 B 0 B 0 0 0 0 B".split(),
    ]


def test_top_as_json_is_one_reading(server: AdminServer) -> None:
    server.registry.connected("alpha")
    answer = json.loads(done(tower(server, "top", "-o", "json")))
    assert answer["clusters"][0]["received_bytes_total"] == 0
    assert answer["window_memory"] == {
        "used_bytes": 3 * 2**20,
        "ceiling_bytes": 2**28,
    }


def test_a_live_table_needs_a_terminal(server: AdminServer) -> None:
    assert "--once" in failed(tower(server, "top"), 2)


def test_on_a_terminal_the_table_is_live(
    server: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(admin_cli, "stdout_is_terminal", lambda: True)
    monkeypatch.setattr(admin_cli, "watch", lambda read: seen.append(read()))
    done(tower(server, "top"))
    assert [set(answer) for answer in seen] == [
        {"clock_seconds", "window_memory", "clusters"}
    ]


# The command line itself


def test_every_command_teaches_by_example() -> None:
    commands = [
        ["token", "create"],
        ["token", "list"],
        ["token", "revoke"],
        ["cluster", "list"],
        ["cluster", "show"],
        ["cluster", "remove"],
        ["kubeconfig"],
        ["status"],
        ["top"],
    ]
    for command in commands:
        text = done(CliRunner().invoke(admin_cli.cli, [*command, "--help"]))
        assert (
            f"tower {' '.join(command)}" in text.split("Usage:")[1].partition("\n")[2]
        )
        assert "Exit status" in text


def test_help_names_the_environment_variables() -> None:
    text = done(CliRunner().invoke(admin_cli.cli, ["--help"]))
    assert "TOWER_ADMIN_SOCKET" in text and "TOWER_STATE_DIR" in text


def test_the_version_is_printed() -> None:
    assert re.fullmatch(
        r"tower \d+\.\d+\.\d+\n", done(CliRunner().invoke(admin_cli.cli, ["--version"]))
    )


@pytest.mark.parametrize(
    "arguments", [["clusters"], ["token", "create"], ["cluster", "list", "-o", "xml"]]
)
def test_wrong_usage_is_status_2(server: AdminServer, arguments: list[str]) -> None:
    assert failed(tower(server, *arguments), 2)


def test_cluster_names_and_token_ids_are_completed_from_the_server(
    server: AdminServer,
) -> None:
    token_id = JoinString.parse(
        done(tower(server, "token", "create", "alpha"))
    ).token_id

    def complete(words: str) -> list[str]:
        count = len(words.split(" ")) - 1
        result = run(
            _TOWER_COMPLETE="complete_bash",
            COMP_WORDS=words,
            COMP_CWORD=str(count),
            TOWER_ADMIN_SOCKET=str(server.socket),
        )
        return result.stdout.split()

    assert complete("tower cluster show al") == ["alpha"]
    assert complete("tower kubeconfig ") == ["alpha"]
    assert complete("tower token revoke ") == [token_id]


def test_completion_is_silent_without_a_server(tmp_path: Path) -> None:
    result = run(
        _TOWER_COMPLETE="complete_bash",
        COMP_WORDS="tower cluster show ",
        COMP_CWORD="3",
        TOWER_ADMIN_SOCKET=str(tmp_path / "none"),
    )
    assert (result.stdout.strip(), result.stderr) == ("", "")


def test_ages_are_counted_from_the_present() -> None:
    assert abs(admin_console.now() - datetime.now(UTC)) < timedelta(seconds=10)
