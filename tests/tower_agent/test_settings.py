"""The agent's settings: where the join string may come from, where state goes, who is allowed."""

import io
from pathlib import Path

import pytest

from shared.settings import HostPort, SettingsError
from tower_agent.settings import (
    DEFAULT_ALLOW_GROUPS,
    DEFAULT_ALLOW_USERS,
    MAX_JOIN_FILE_BYTES,
    JoinSource,
    parse_agent_settings,
)

JOIN = "tower+join://alpha:k3v9m2x7qaht.c2VjcmV0c2VjcmV0c2VjcmV0@tower.example.com:8443?pin=sha256:00"


@pytest.fixture
def join_file(tmp_path: Path) -> Path:
    path = tmp_path / "join"
    path.write_text(JOIN + "\n")
    path.chmod(0o600)
    return path


# The join string


def test_it_is_read_from_a_private_file(join_file: Path) -> None:
    settings = parse_agent_settings(join_file=str(join_file), state_dir="/s")
    assert settings.join is not None and settings.join.read() == JOIN


def test_it_is_read_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"\n  {JOIN}  \n"))
    settings = parse_agent_settings(join_file="-", state_dir="/s")
    assert settings.join is not None and settings.join.read() == JOIN


def test_it_is_read_from_the_environment_and_not_shown() -> None:
    settings = parse_agent_settings(join_text=JOIN, state_dir="/s")
    assert settings.join is not None and settings.join.read() == JOIN
    assert "c2VjcmV0" not in repr(settings) + str(settings.join)


def test_a_file_wins_over_the_environment(join_file: Path) -> None:
    settings = parse_agent_settings(
        join_file=str(join_file), join_text="other", state_dir="/s"
    )
    assert settings.join is not None and settings.join.read() == JOIN


def test_an_env_file_is_understood_as_a_join_file(join_file: Path) -> None:
    join_file.write_text(f"# a comment\nTOWER_JOIN={JOIN}\nTOWER_AGENT_STATE_DIR=/s\n")
    assert JoinSource(file=str(join_file)).read() == JOIN


def test_without_one_the_agent_may_start_because_it_may_have_joined() -> None:
    assert parse_agent_settings(state_dir="/s").join is None


def test_a_file_is_not_looked_at_before_it_is_needed(tmp_path: Path) -> None:
    settings = parse_agent_settings(join_file=str(tmp_path / "gone"), state_dir="/s")
    assert settings.join is not None
    with pytest.raises(SettingsError, match="cannot be read .* check --join-file"):
        settings.join.read()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o777])
def test_a_file_that_others_can_read_is_refused_with_the_remedy(
    join_file: Path, mode: int
) -> None:
    join_file.chmod(mode)
    with pytest.raises(SettingsError, match=f"chmod 600 {join_file}"):
        JoinSource(file=str(join_file)).read()


@pytest.mark.parametrize(
    "content", ["", "\n\n", f"{JOIN}\n{JOIN}", "x" * (MAX_JOIN_FILE_BYTES + 1)]
)
def test_a_file_with_anything_but_one_line_is_refused_without_being_quoted(
    join_file: Path, content: str
) -> None:
    join_file.write_text(content)
    with pytest.raises(SettingsError, match="tower token create") as caught:
        JoinSource(file=str(join_file)).read()
    assert "c2VjcmV0" not in str(caught.value)


def test_a_directory_as_join_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        JoinSource(file=str(tmp_path)).read()


def test_the_join_string_itself_as_an_argument_is_refused_without_being_quoted() -> (
    None
):
    with pytest.raises(SettingsError, match="process list") as caught:
        parse_agent_settings(join_file=JOIN, state_dir="/s")
    assert "c2VjcmV0" not in str(caught.value)


# State


def test_state_is_in_a_directory_or_in_a_secret() -> None:
    assert parse_agent_settings(state_dir="/s").state_dir == Path("/s")
    reference = parse_agent_settings(
        state_secret="tower-agent/credentials"
    ).state_secret
    assert reference is not None
    assert (reference.namespace, reference.name) == ("tower-agent", "credentials")


@pytest.mark.parametrize("arguments", [{}, {"state_dir": "/s", "state_secret": "a/b"}])
def test_neither_and_both_are_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="--state-dir DIR .* --state-secret"):
        parse_agent_settings(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["a", "/a", "a/", "A/b", "a/b/c", "a/b c"])
def test_a_wrong_secret_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="NAMESPACE/NAME"):
        parse_agent_settings(state_secret=text)


# The member


def test_targets_have_names() -> None:
    settings = parse_agent_settings(
        state_dir="/s", targets=["web=127.0.0.1:80", "db=db.internal:5432"]
    )
    assert {target.name: target.address for target in settings.targets} == {
        "web": HostPort(host="127.0.0.1", port=80),
        "db": HostPort(host="db.internal", port=5432),
    }


@pytest.mark.parametrize(
    "targets",
    [
        ["web"],
        ["=127.0.0.1:80"],
        ["Web=127.0.0.1:80"],
        ["web=80"],
        ["web=a:1", "web=b:2"],
    ],
)
def test_wrong_targets_are_refused(targets: list[str]) -> None:
    with pytest.raises(SettingsError, match="--target"):
        parse_agent_settings(state_dir="/s", targets=targets)


@pytest.mark.parametrize(
    ("field", "setting"), [("kubeconfig", "--kubeconfig"), ("ca_file", "--ca-file")]
)
def test_files_have_to_be_there(tmp_path: Path, field: str, setting: str) -> None:
    with pytest.raises(SettingsError, match=f"{setting} .* check the path"):
        parse_agent_settings(state_dir="/s", **{field: str(tmp_path / "gone")})  # type: ignore[arg-type]


# Who is allowed


def test_the_default_is_tower_s_admin_and_admins() -> None:
    settings = parse_agent_settings(state_dir="/s")
    assert settings.allow_users == frozenset(DEFAULT_ALLOW_USERS) == {"tower:admin"}
    assert (
        settings.allow_groups
        == frozenset(DEFAULT_ALLOW_GROUPS)
        == {"tower:cluster-admins"}
    )


def test_what_is_listed_replaces_the_default() -> None:
    settings = parse_agent_settings(state_dir="/s", allow_users=["*", "system:admin"])
    assert settings.allow_users == {"*", "system:admin"}
    assert settings.allow_groups == {"tower:cluster-admins"}


@pytest.mark.parametrize("name", ["", " jane", "ja\nne", "j" * 257])
def test_names_that_no_certificate_may_have_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="--allow-group: "):
        parse_agent_settings(state_dir="/s", allow_groups=[name])


def test_health_is_off_unless_it_is_asked_for() -> None:
    assert parse_agent_settings(state_dir="/s").health is None
    settings = parse_agent_settings(state_dir="/s", health="127.0.0.1:0")
    assert settings.health == HostPort(host="127.0.0.1", port=0)


def test_memory_for_windows_is_a_quarter_gibibyte_unless_told_otherwise() -> None:
    assert parse_agent_settings(state_dir="/s").window_memory_bytes == 2**28
    settings = parse_agent_settings(state_dir="/s", window_memory="1Gi")
    assert settings.window_memory_bytes == 2**30
    with pytest.raises(SettingsError, match="--window-memory"):
        parse_agent_settings(state_dir="/s", window_memory="1Mi")


@pytest.mark.parametrize("count", [-1, 0, 5])
def test_a_number_of_tunnels_that_is_none_is_refused(count: int) -> None:
    with pytest.raises(SettingsError, match="from 1 to 4"):
        parse_agent_settings(state_dir="/s", tunnels=count)
    assert parse_agent_settings(state_dir="/s").tunnels == 1
    assert parse_agent_settings(state_dir="/s", tunnels=4).tunnels == 4
