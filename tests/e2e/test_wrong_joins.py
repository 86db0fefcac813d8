"""Twelve wrong joins: each ends within ten seconds in one sentence with cause and remedy.

Real server, real agent, real apiserver; only the clock of the twelfth is ours. What each
sentence must name is written beside its case.
"""

import contextlib
import dataclasses
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.member import Member
from tests.e2e.neighbours import free_port, host_port, in_thread
from tests.e2e.processes import Process
from tests.e2e.tower import Tower, program, wait_until
from tests.fakes.http_proxy import http_proxy
from tests.fakes.tls_proxy import StrangeAuthority, tls_terminator

# The number.
ENDS_SECONDS = 10.0

# A name that only a proxy could resolve (RFC 6761).
ELSEWHERE = "tower.invalid"

FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

A_DAY_AHEAD = """
import datetime, sys
class Ahead(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(days=1)
datetime.datetime = Ahead
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """How an agent ended."""

    code: int
    # The last line of what it said, without "Error: ".
    sentence: str
    log: str

    def assert_names(self, *words: str) -> None:
        """One sentence (perhaps two: cause, remedy) on one line, holding these words."""
        assert self.code != 0, self.log
        assert "Traceback" not in self.log, self.log
        for word in words:
            assert re.search(word, self.sentence, re.IGNORECASE), (word, self.log)
        # A remedy is an order or two after the cause.
        assert len(self.sentence) < 500, self.sentence


class Joiner:
    """Starts agents of one Tower for one member, each with a fresh state directory."""

    def __init__(self, tower: Tower, kubeconfig: Path, directory: Path) -> None:
        self.tower = tower
        # Of the ServiceAccount of an applied manifest.
        self.kubeconfig = kubeconfig
        self.directory = directory
        # A test let somebody in, as gamma.
        self.has_joined = False
        self._count = 0

    def token(self, cluster: str = "gamma", *arguments: str) -> str:
        return self.tower.admin("token", "create", cluster, *arguments).strip()

    def agent(
        self,
        join: str,
        *arguments: str,
        kubeconfig: Path | None = None,
        environment: dict[str, str] | None = None,
        prelude: str = "",
    ) -> Process:
        """An agent that is not started yet."""
        self._count += 1
        folder = self.directory / f"agent-{self._count}"
        folder.mkdir()
        join_file = folder / "join"
        join_file.touch(mode=0o600)
        join_file.write_text(join)
        python, safe_path, _, code, *rest = program(
            "tower_agent.cli",
            *(
                "run",
                "--join-file",
                str(join_file),
                "--state-dir",
                str(folder / "state"),
            ),
            *("--kubeconfig", str(kubeconfig or self.kubeconfig)),
            *arguments,
        )
        return Process(
            folder.name,
            [python, safe_path, "-c", f"{prelude}\n{code}", *rest],
            {**self.tower.environment, **(environment or {})},
            folder / "log",
        )

    def joins(self, join: str) -> None:
        """Let an agent join as gamma, and end it."""
        agent = self.agent(join)
        try:
            agent.start()
            agent.wait_for_line("tower-agent ready")
            self.has_joined = True
        finally:
            agent.stop()

    def ends(self, join: str, *arguments: str, **options: object) -> Ended:
        """Start an agent that has to end by itself, in time."""
        process = self.agent(join, *arguments, **options)  # type: ignore[arg-type]
        try:
            process.start()
            code = process.wait(ENDS_SECONDS)
        finally:
            process.stop()
        log = process.log.read_text()
        last = log.strip().splitlines()[-1] if log.strip() else ""
        return Ended(code=code, sentence=last.removeprefix("Error: "), log=log)


@pytest.fixture(scope="module")
def module_tower() -> Iterator[Tower]:
    directory = Path(tempfile.mkdtemp(prefix="tower-e2e-wrong-"))
    tower = Tower(directory)
    tower.start()
    yield tower
    tower.stop()
    shutil.rmtree(directory)


def agent_kubeconfig(tower: Tower, member: Member) -> Path:
    """Apply the manifest, as the member's admin, and act as its ServiceAccount."""
    manifest = tower.admin("token", "create", member.name, "--format", "manifest")
    documents = [document for document in yaml.safe_load_all(manifest) if document]
    member.apply(*documents)
    account = next(d for d in documents if d["kind"] == "ServiceAccount")["metadata"]
    return member.plane.service_account_kubeconfig(
        account["namespace"], account["name"]
    )


@pytest.fixture(scope="module")
def kubeconfig_of_alpha(module_tower: Tower, alpha: Member) -> Path:
    return agent_kubeconfig(module_tower, alpha)


@pytest.fixture
def joiner(
    module_tower: Tower, kubeconfig_of_alpha: Path, tmp_path: Path
) -> Iterator[Joiner]:
    joiner = Joiner(module_tower, kubeconfig_of_alpha, tmp_path)
    yield joiner
    if joiner.has_joined:
        # Leave the name and the member free for the next.
        module_tower.admin("cluster", "remove", "gamma", "--yes")


def readdressed(join: str, address: str) -> str:
    return re.sub(r"@[^?/]+", f"@{address}", join)


def token_id(join: str) -> str:
    found = re.search(r"//[^:]+:([^.]+)\.", join)
    assert found
    return found[1]


def secret(join: str) -> str:
    found = re.search(r"\.([^.@]+)@", join)
    assert found
    return found[1]


def test_wrong_pin(joiner: Joiner) -> None:
    join = re.sub(r"[0-9a-f]{8}$", "00000000", joiner.token())
    joiner.ends(join).assert_names("pin", "join string|token create")


def test_wrong_token(joiner: Joiner) -> None:
    # The secret of another token under this one's id.
    other, join = joiner.token(), joiner.token()
    join = join.replace(f".{secret(join)}@", f".{secret(other)}@")
    joiner.ends(join).assert_names("token|secret", "token create|check")


def test_expired_token(joiner: Joiner) -> None:
    join = joiner.token()
    # The shortest life is a minute, too long to wait: the store says that it is over.
    store = sqlite3.connect(joiner.tower.state / "tower.sqlite")
    with contextlib.closing(store), store:
        store.execute(
            "UPDATE tokens SET expires_at = created_at WHERE id = ?", [token_id(join)]
        )
    joiner.ends(join).assert_names("expired", "token create")


def test_used_token(joiner: Joiner) -> None:
    join = joiner.token()
    joiner.joins(join)
    joiner.ends(join).assert_names("used", "token create")


def test_revoked_token(joiner: Joiner) -> None:
    join = joiner.token()
    joiner.tower.admin("token", "revoke", token_id(join))
    joiner.ends(join).assert_names("revoked", "token create")


def test_clock_off_by_a_day(joiner: Joiner) -> None:
    ended = joiner.ends(joiner.token(), prelude=A_DAY_AHEAD)
    ended.assert_names("clock", r"\b1 ?d", "ahead", "NTP|set")


def test_port_closed(joiner: Joiner) -> None:
    address = f"127.0.0.1:{free_port()}"
    ended = joiner.ends(readdressed(joiner.token(), address))
    ended.assert_names(address, "refused|listens", "check")


def test_not_a_tower(joiner: Joiner, alpha: Member) -> None:
    # HTTPS, and somebody else's: the member's own apiserver.
    address = f"127.0.0.1:{alpha.plane.port}"
    ended = joiner.ends(readdressed(joiner.token(), address))
    ended.assert_names(address, "Tower", "check")


def test_proxy_demands_a_login(joiner: Joiner) -> None:
    _, port = host_port(joiner.tower.address)
    with in_thread(http_proxy(login="somebody:else")) as proxy:
        ended = joiner.ends(
            readdressed(joiner.token(), f"{ELSEWHERE}:{port}"),
            environment={"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"},
        )
    ended.assert_names("407", f"127.0.0.1:{proxy.port}", "HTTPS_PROXY")


def test_websocket_blocked(joiner: Joiner, tmp_path: Path) -> None:
    company = StrangeAuthority()
    (tmp_path / "ca.crt").write_bytes(company.pem)
    _, port = host_port(joiner.tower.address)

    def forbid_upgrades(data: bytes) -> bytes:
        return FORBIDDEN if data.startswith(b"HTTP/1.1 101 ") else data

    context = company.server_context("127.0.0.1")
    with in_thread(tls_terminator(context, port, transform=forbid_upgrades)) as blocked:
        agent = joiner.agent(
            readdressed(joiner.token(), f"127.0.0.1:{blocked}"),
            *("--ca-file", str(tmp_path / "ca.crt")),
        )
        agent.start()
        try:
            # The join itself went well, so the agent goes on trying: only its words are judged.
            wait_until(
                lambda: "WebSocket" in agent.log.read_text(), ENDS_SECONDS, "its words"
            )
            joiner.has_joined = True
        finally:
            agent.stop()
    lines = agent.log.read_text().splitlines()
    (sentence,) = [line for line in lines if "WebSocket" in line]
    for word in ("blocked", "403", "proxy", "load balancer"):
        assert word in sentence


def test_apiserver_unreachable(joiner: Joiner, tmp_path: Path) -> None:
    document = yaml.safe_load(joiner.kubeconfig.read_text())
    address = f"127.0.0.1:{free_port()}"
    document["clusters"][0]["cluster"]["server"] = f"https://{address}"
    kubeconfig = tmp_path / "unreachable.kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(yaml.safe_dump(document))
    ended = joiner.ends(joiner.token(), kubeconfig=kubeconfig)
    ended.assert_names("apiserver", address, "check")


def test_rights_missing(joiner: Joiner, alpha: Member) -> None:
    bare = alpha.plane.service_account_kubeconfig("default", "default")
    ended = joiner.ends(joiner.token(), kubeconfig=bare)
    ended.assert_names("rights", "impersonate", "manifest")


def test_name_taken(joiner: Joiner, beta: Member) -> None:
    joiner.joins(joiner.token())
    kubeconfig = agent_kubeconfig(joiner.tower, beta)
    ended = joiner.ends(joiner.token(), kubeconfig=kubeconfig)
    ended.assert_names("gamma", "another|other", "name|remove")


def test_a_member_joins_under_one_name_only(joiner: Joiner) -> None:
    joiner.joins(joiner.token())
    ended = joiner.ends(joiner.token("delta"))
    ended.assert_names("gamma", "remove|name")


def test_the_join_string_is_never_an_argument(joiner: Joiner) -> None:
    process = joiner.agent("")
    process.command[process.command.index("--join-file") + 1] = joiner.token()
    process.start()
    assert process.wait(ENDS_SECONDS) == 2
    process.stop()
    assert "file" in process.log.read_text()
