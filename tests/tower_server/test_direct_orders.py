"""`tower cluster add` and `set-kubeconfig`, from the command line over the socket to a fake apiserver.

Covered: files, stdin and contexts, what is recorded and what is shown, allow-lists, another cluster,
names and members that are taken, missing rights, no apiserver, what cannot be used, --insecure,
removal, wrong orders, that no secret is in any answer or log.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.fakes.admin_server import AdminServer
from tests.fakes.member_api import MemberApi, member_api
from tests.tower_server.test_direct import SERVER_TLS, kubeconfig
from tower_server.admin_cli import cli
from tower_server.admin_client import AdminClient, CommandFailed
from tower_server.membership import DirectMember
from tower_server.stores import TokenId

SECRET = "one-that-nobody-may-see"


class Member:
    """A fake apiserver in a thread of its own, for the blocking command line."""

    def __init__(self) -> None:
        self.api = MemberApi(authorization=f"Bearer {SECRET}")
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main)

    def __enter__(self) -> "Member":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def _main(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        async with member_api(self.api, tls=SERVER_TLS):
            self.port = int(self.api.address.rpartition(":")[2])
            self._ready.set()
            await self._stop.wait()

    def kubeconfig(self, user: dict[str, Any] | None = None, **cluster: Any) -> str:
        return bytes(
            kubeconfig(self.port, user or {"token": SECRET}, **cluster)
        ).decode()


@pytest.fixture
def member() -> Iterator[Member]:
    with Member() as running:
        yield running


@pytest.fixture
def server(tmp_path: Path, member: "Member") -> Iterator[AdminServer]:
    # Ends before the member, to which it has connections.
    with AdminServer(tmp_path) as running:
        yield running


@pytest.fixture
def file(member: Member, tmp_path: Path) -> Path:
    path = tmp_path / "member.kubeconfig"
    path.write_text(member.kubeconfig())
    return path


def tower(server: AdminServer, *arguments: str | Path, stdin: str = "") -> Result:
    words = ["--socket", str(server.socket), "cluster", *map(str, arguments)]
    result = CliRunner().invoke(cli, words, input=stdin)
    assert SECRET not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def only(server: AdminServer) -> DirectMember:
    (kept,) = server.run(server.store.list_direct())
    return kept


def test_a_cluster_is_added_by_its_kubeconfig(
    server: AdminServer, member: Member, file: Path
) -> None:
    added = tower(server, "add", "beta", "--kubeconfig", file)
    assert added.exit_code == 0
    assert added.stdout == ""
    assert "beta is added: it runs v1.34.1" in added.stderr
    assert member.api.uid in added.stderr
    assert "as users tower:admin and groups tower:cluster-admins" in added.stderr
    assert "tower kubeconfig beta" in added.stderr
    kept = only(server)
    assert (kept.cluster, kept.member_uid) == ("beta", member.api.uid)
    assert (kept.added_at, kept.updated_at) == (server.now, server.now)
    assert server.reached.knows("beta")
    (listed,) = AdminClient(server.socket).get("clusters")["clusters"]
    assert (listed["name"], listed["connection"]) == ("beta", "direct")
    # And a kubeconfig of it can be had, as of any other.
    issued = AdminClient(server.socket).post("kubeconfig", order={"cluster": "beta"})
    assert yaml.safe_load(issued["kubeconfig"])["clusters"]


def test_json_has_all_but_the_kubeconfig(
    server: AdminServer, member: Member, file: Path
) -> None:
    flags = ("--allow-user", "jane", "--allow-user", "joe", "--allow-group", "dev")
    added = tower(server, "add", "beta", "--kubeconfig", file, *flags, "-o", "json")
    document = json.loads(added.stdout)
    assert document["allow_users"] == ["jane", "joe"]
    assert document["allow_groups"] == ["dev"]
    assert document["apiserver_version"] == "v1.34.1"
    assert "kubeconfig" not in document
    kept = only(server)
    assert kept.allow_users == {"jane", "joe"} and kept.allow_groups == {"dev"}


def test_stdin_and_a_context_by_name(server: AdminServer, member: Member) -> None:
    other = yaml.safe_load(member.kubeconfig())
    other["current-context"] = "elsewhere"
    other["users"].append({"name": "x", "user": {"token": "of-somebody-else"}})
    text = yaml.safe_dump(other)
    flags = ("--kubeconfig", "-", "--context", "m")
    assert tower(server, "add", "beta", *flags, stdin=text).exit_code == 0
    # What the context does not need has stayed at home.
    assert b"somebody" not in bytes(only(server).kubeconfig)
    missing = tower(server, "add", "beta", "--kubeconfig", "-", stdin=text)
    assert missing.exit_code == 2
    assert "no entry 'elsewhere' in its contexts: it has m" in missing.stderr


def test_relative_paths_are_those_beside_the_file(
    server: AdminServer, member: Member, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(SECRET)
    text = member.kubeconfig({"tokenFile": "token"})
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    assert tower(server, "add", "beta", "--kubeconfig", path).exit_code == 0
    assert str(tmp_path / "token").encode() in bytes(only(server).kubeconfig)
    from_stdin = tower(server, "add", "beta", "--kubeconfig", "-", stdin=text)
    assert from_stdin.exit_code == 2 and "--flatten" in from_stdin.stderr


def test_a_renewed_kubeconfig_replaces_the_old_and_keeps_the_rest(
    server: AdminServer, member: Member, file: Path
) -> None:
    flags = ("--allow-user", "jane", "--allow-group", "dev")
    tower(server, "add", "beta", "--kubeconfig", file, *flags)
    added_at = server.now
    server.later(hours=1)
    file.write_text(member.kubeconfig(**{"tls-server-name": "127.0.0.1"}))
    done = tower(server, "set-kubeconfig", "beta", "--kubeconfig", file)
    assert done.exit_code == 0
    assert "beta has another kubeconfig. The host may act" in done.stderr
    kept = only(server)
    assert b"tls-server-name" in bytes(kept.kubeconfig)
    assert (kept.added_at, kept.updated_at) == (added_at, server.now)
    assert (kept.allow_users, kept.allow_groups) == ({"jane"}, {"dev"})
    flags = ("--allow-group", "ops", "-o", "json")
    tower(server, "set-kubeconfig", "beta", "--kubeconfig", file, *flags)
    assert only(server).allow_groups == {"ops"}


def test_a_kubeconfig_of_another_cluster_is_refused(
    server: AdminServer, member: Member, file: Path
) -> None:
    tower(server, "add", "beta", "--kubeconfig", file)
    before = only(server)
    member.api.uid = "another"
    done = tower(server, "set-kubeconfig", "beta", "--kubeconfig", file)
    assert done.exit_code == 5
    assert "leads to another cluster than 'beta' (UID another" in done.stderr
    assert only(server) == before


def test_a_member_has_one_name_and_a_name_one_member(
    server: AdminServer, member: Member, file: Path
) -> None:
    tower(server, "add", "beta", "--kubeconfig", file)
    second = tower(server, "add", "gamma", "--kubeconfig", file)
    assert second.exit_code == 5 and "already joined as 'beta'" in second.stderr
    again = tower(server, "add", "beta", "--kubeconfig", file)
    assert again.exit_code == 5 and "set-kubeconfig beta" in again.stderr
    only(server)


def test_neither_kind_takes_over_the_other(
    server: AdminServer, member: Member, file: Path
) -> None:
    admin = AdminClient(server.socket)
    token = admin.post("tokens", order={"cluster": "alpha"})
    server.join(token["join_string"], member.api.uid)
    for command in ("add", "set-kubeconfig"):
        done = tower(server, command, "alpha", "--kubeconfig", file)
        assert done.exit_code == 5, done.output
        assert "connected through its agent" in done.stderr
    nobody = tower(server, "set-kubeconfig", "gamma", "--kubeconfig", file)
    assert nobody.exit_code == 3 and "tower cluster add gamma" in nobody.stderr


def test_missing_rights_are_named_and_nothing_is_recorded(
    server: AdminServer, member: Member, file: Path
) -> None:
    member.api.denied = {
        "impersonate groups/tower:cluster-admins",
        "create subjectaccessreviews",
    }
    done = tower(server, "add", "beta", "--kubeconfig", file)
    assert done.exit_code == 5
    assert "impersonate groups 'tower:cluster-admins'" in done.stderr
    assert "create subjectaccessreviews" in done.stderr
    assert server.run(server.store.list_direct()) == []
    assert not server.reached.knows("beta")


@pytest.mark.parametrize(
    ("user", "cluster", "code", "words"),
    [
        ({"exec": {"command": "aws"}}, {}, 2, "needs a program"),
        ({"token": "wrong"}, {}, 5, "401 Unauthorized"),
        (None, {"server": "https://127.0.0.1:1"}, 5, "does not answer"),
        (None, {"proxy-url": "socks5://p"}, 2, "SOCKS"),
        (None, {"certificate-authority-data": None}, 5, "not trusted"),
        (None, {"insecure-skip-tls-verify": True}, 2, "--insecure"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(
    server: AdminServer,
    member: Member,
    user: dict[str, Any] | None,
    cluster: dict[str, Any],
    code: int,
    words: str,
) -> None:
    text = member.kubeconfig(user, **cluster)
    done = tower(server, "add", "beta", "--kubeconfig", "-", stdin=text)
    assert (done.exit_code, words in done.stderr) == (code, True), done.output
    assert server.run(server.store.list_direct()) == []


def test_insecure_has_to_be_said_and_is_warned_of(
    server: AdminServer, member: Member
) -> None:
    text = member.kubeconfig(
        **{"insecure-skip-tls-verify": True, "certificate-authority-data": None}
    )
    flags = ("--kubeconfig", "-", "--insecure")
    done = tower(server, "add", "beta", *flags, stdin=text)
    assert done.exit_code == 0 and "Warning: with --insecure" in done.stderr
    assert only(server).is_insecure_allowed


def test_a_file_that_is_not_there_is_wrong_usage(
    server: AdminServer, tmp_path: Path
) -> None:
    done = tower(server, "add", "beta", "--kubeconfig", tmp_path / "gone")
    assert done.exit_code == 2 and "No such file" in done.stderr


def test_removing_it_deletes_the_kubeconfig(
    server: AdminServer, member: Member, file: Path
) -> None:
    tower(server, "add", "beta", "--kubeconfig", file)
    assert tower(server, "remove", "beta", "--yes").exit_code == 0
    assert server.run(server.store.list_direct()) == []
    assert server.registry.cuts[0][0] == "beta"
    assert tower(server, "add", "gamma", "--kubeconfig", file).exit_code == 0


def test_a_join_of_the_same_name_is_refused(
    server: AdminServer, member: Member, file: Path
) -> None:
    tower(server, "add", "beta", "--kubeconfig", file)
    token = AdminClient(server.socket).post("tokens", order={"cluster": "beta"})
    with pytest.raises(Exception, match="has a direct connection"):
        server.join(token["join_string"], member.api.uid)
    kept = server.run(server.store.get_token(TokenId(token["id"])))
    assert kept is not None and kept.used_at is None


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({}, "cluster"),
        ({"cluster": "beta"}, "kubeconfig"),
        ({"cluster": "beta", "kubeconfig": 1}, "has to be a string"),
        ({"cluster": "beta", "kubeconfig": "x", "insecure": "yes"}, "true or false"),
        ({"cluster": "Beta", "kubeconfig": "x"}, "Beta"),
        ({"cluster": "beta", "kubeconfig": "x", "more": 1}, "unknown"),
        (
            {"cluster": "beta", "kubeconfig": "x", "allow_users": ["a\nb"]},
            "control",
        ),
        ({"cluster": "beta", "kubeconfig": "x: ["}, "not YAML"),
    ],
)
def test_a_wrong_order_is_refused(
    server: AdminServer, order: dict[str, Any], words: str
) -> None:
    with pytest.raises(CommandFailed, match=words):
        AdminClient(server.socket).post("clusters", order=order)


def test_who_added_is_logged_and_what_is_not(
    server: AdminServer, member: Member, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tower(server, "add", "beta", "--kubeconfig", file)
    tower(server, "set-kubeconfig", "beta", "--kubeconfig", file)
    assert f"added cluster beta with a direct connection, UID {member.api.uid}" in (
        caplog.text
    )
    assert "replaced the kubeconfig of beta" in caplog.text
    assert SECRET not in caplog.text
