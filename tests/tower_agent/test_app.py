"""The whole agent against the whole server, in one process on loopback, with a small apiserver.

Covered: join and later starts, health, targets, a server that restarts, another CA in front of
the server, every exit status with its sentence, that nothing is left open; and, as a process of
its own: suspended and woken, stopped by a signal.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from certs.authority import Authority
from certs.chains import pem
from certs.contexts import sealed_client
from certs.joining import JoinString, TokenId, new_token, verifier_of
from certs.keys import new_key, private_pem
from certs.names import parse_cluster_name
from shared.program import ProgramFailed
from shared.settings import HostPort, SettingsError
from tests.fakes.host_side import open_sockets, until
from tests.fakes.member_api import MemberApi, member_api
from tests.fakes.tls_proxy import StrangeAuthority, tls_terminator
from tests.tower_agent.test_health import free_port, get
from tower_agent import app
from tower_agent.settings import AgentSettings, JoinSource
from tower_server.app import serve
from tower_server.settings import ServeSettings
from tower_server.state_directory import AUTHORITY_NAME, STORE_NAME
from tower_server.stores import TokenRecord
from tower_server.stores.sqlite import SqliteStore

ZONE = "clusters.tower.internal"
LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]


class Site:
    """A server that can be started and stopped, a member, and settings for its agent."""

    def __init__(self, directory: Path, member: MemberApi) -> None:
        self.member = member
        self.port = free_port()
        self.state = directory / "server"
        self.agent_state = directory / "agent"
        self.state.mkdir(mode=0o700)
        self.authority = Authority.open_or_create(
            self.state / AUTHORITY_NAME, ZONE, datetime.now(UTC)
        )
        self._kubeconfig = directory / "member.kubeconfig"
        self._write_kubeconfig()

    def _write_kubeconfig(self) -> None:
        cluster = {"server": f"http://{self.member.address}"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": "agents-own"}}],
        }
        self._kubeconfig.write_text(json.dumps(config))
        self._kubeconfig.chmod(0o600)

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[SqliteStore]:
        store = await SqliteStore.open(self.state / STORE_NAME)
        try:
            yield store
        finally:
            await store.close()

    async def invite(self, *, port: int | None = None) -> JoinString:
        """What `tower token create alpha` prints."""
        token_id, secret = new_token()
        now = datetime.now(UTC)
        record = TokenRecord(
            id=TokenId(token_id),
            cluster=parse_cluster_name("alpha"),
            verifier=verifier_of(secret),
            created_at=now,
            expires_at=now + timedelta(hours=1),
        )
        async with self.store() as store:
            await store.add_token(record, now)
        return JoinString(
            cluster=record.cluster,
            host=LOOPBACK,
            port=port or self.port,
            token_id=token_id,
            secret=secret,
            pin=self.authority.pin,
        )

    def settings(self, join: JoinString | None = None, **changes: Any) -> AgentSettings:
        source = JoinSource(text=join.format()) if join else None
        given = {
            "join": source,
            "state_dir": self.agent_state,
            "kubeconfig": self._kubeconfig,
        }
        return AgentSettings(**(given | changes))

    @contextlib.asynccontextmanager
    async def server(self) -> AsyncIterator[None]:
        settings = ServeSettings(
            state_dir=self.state,
            listen=HostPort(host=LOOPBACK, port=self.port),
            public_address=None,
            zone=ZONE,
            admin_socket=self.state / "admin.sock",
        )
        async with background(serve(settings)) as task:
            await until(lambda: task.done() or accepts(self.port))
            yield

    async def joined(self) -> None:
        """Join once, and stop."""
        async with self.server(), self.agent(self.settings(await self.invite())):
            pass

    @contextlib.asynccontextmanager
    async def agent(self, settings: AgentSettings) -> AsyncIterator[int]:
        """A running agent that is connected; yields its health port."""
        port = free_port()
        health = HostPort(host=LOOPBACK, port=port)
        running = app.run(dataclasses.replace(settings, health=health))
        async with background(running) as task:
            async with asyncio.timeout(15):
                while not await is_ready(port):
                    if task.done():
                        task.result()
                    await asyncio.sleep(0.01)
            yield port

    async def cluster(self) -> dict[str, Any]:
        """What the server's admin is told."""
        connector = aiohttp.UnixConnector(str(self.state / "admin.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:
            url = "http://tower/admin/v1/clusters/alpha"
            async with session.get(url) as answer:
                document: dict[str, Any] = await answer.json()
                return dict(document.get("cluster", document))

    async def ask(self, query: str = "") -> bytes:
        """A request of a control plane through the server; b"" when there is no answer."""
        key = new_key()
        certificate = self.authority.issue_user(
            key.public_key(),
            "tower:admin",
            ("tower:cluster-admins",),
            (parse_cluster_name("alpha"),),
            timedelta(hours=1),
            datetime.now(UTC),
        )
        context = sealed_client(pem(certificate), private_pem(key), self.authority.pem)
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(
                LOOPBACK, self.port, ssl=context, server_hostname=f"alpha.{ZONE}"
            )
            try:
                path = f"/clusters/alpha/version{query}"
                writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
                return await reader.readuntil(b"\r\n\r\n")
            finally:
                writer.transport.abort()
        return b""

    async def works(self) -> None:
        assert (await self.ask()).startswith(b"HTTP/1.1 200 ")


@contextlib.asynccontextmanager
async def background(coroutine: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(10):
                await task


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


async def is_ready(port: int) -> bool:
    with contextlib.suppress(OSError):
        return (await get(port, "/readyz"))[0] == 200
    return False


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with member_api() as (member, _):
        yield Site(tmp_path, member)


# What goes well


async def test_an_agent_joins_says_so_and_serves_requests(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    before = open_sockets()
    async with site.server():
        async with site.agent(site.settings(await site.invite())) as port:
            await site.works()
            assert await get(port, "/healthz") == (200, "ok\n")
        out = capsys.readouterr().out
        line = f"tower-agent ready: alpha connected to {LOOPBACK}:{site.port}\n"
        assert out.count(line) == 1
        assert not accepts(port), "the health endpoint is closed"
    # The connections of the test's own clients may take a moment.
    await until(lambda: open_sockets() <= before)
    assert len(asyncio.all_tasks()) <= 2, asyncio.all_tasks()


async def test_several_tunnels_are_held_and_shown(site: Site) -> None:
    async with site.server():
        settings = site.settings(await site.invite(), tunnels=3)
        async with site.agent(settings) as port:
            async with asyncio.timeout(5):
                while len(cluster := await site.cluster()) and (
                    len(cluster["tunnels"]) < 3 or not cluster["apiserver_version"]
                ):
                    await asyncio.sleep(0.01)
            assert [t["state"] for t in cluster["tunnels"]] == ["active"] * 3
            assert cluster["sessions"] == 3
            for _ in range(6):
                await site.works()
            sessions = 'tower_tunnel_sessions{cluster="alpha"} 3.0'
            assert sessions in (await get(port, "/metrics"))[1]
        async with asyncio.timeout(5):
            while (cluster := await site.cluster())["state"] != "away":
                await asyncio.sleep(0.01)
        assert cluster["tunnels"] == []


async def test_later_starts_need_no_token_and_no_apiserver(site: Site) -> None:
    await site.joined()
    site.member.answer_with = 500
    async with site.server(), site.agent(site.settings()):
        assert (await site.ask()).startswith(b"HTTP/1.1 500 ")


async def test_a_server_that_restarts_has_its_agent_back_within_two_seconds(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with site.server():
            port = await stack.enter_async_context(
                site.agent(site.settings(await site.invite()))
            )
        await until(lambda: not accepts(site.port))
        async with asyncio.timeout(5):
            while await is_ready(port):
                await asyncio.sleep(0.01)
        assert (await get(port, "/healthz"))[0] == 200
        async with site.server():
            back_at = time.monotonic()
            while not (await site.ask()).startswith(b"HTTP/1.1 200 "):
                assert time.monotonic() - back_at < 2.0
        # One line for each tunnel.
        assert capsys.readouterr().out.count("tower-agent ready:") == 2


async def test_whoever_read_the_ready_line_may_be_gone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    async with site.server():
        join = await site.invite()
        monkeypatch.setattr(sys, "stdout", Gone())
        async with site.agent(site.settings(join)):
            await site.works()


async def test_a_ca_that_is_given_later_counts_for_the_tunnel(
    site: Site, tmp_path: Path
) -> None:
    """Joined straight at the server; then a proxy that ends TLS came in between."""
    await site.joined()
    company = StrangeAuthority()
    ca_file = tmp_path / "company.crt"
    ca_file.write_bytes(company.pem)
    public, site.port = site.port, free_port()
    async with site.server():
        proxy = tls_terminator(company.server_context(LOOPBACK), site.port)
        async with proxy as proxy_port, forwarded(public, proxy_port):
            async with site.agent(site.settings(ca_file=ca_file)):
                await site.works()
    # And the Tower CA is still as good.
    site.port = public
    async with site.server(), site.agent(site.settings(ca_file=ca_file)):
        await site.works()


@contextlib.asynccontextmanager
async def forwarded(port: int, to_port: int) -> AsyncIterator[None]:
    """What listens on `to_port` is reached on `port`, too."""

    async def serve_one(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, to_port)

        async def pump(source: Any, sink: Any) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve_one, LOOPBACK, port)
    try:
        yield
    finally:
        server.close()


# Exit statuses


async def failure(settings: AgentSettings) -> ProgramFailed:
    with pytest.raises(ProgramFailed) as raised:
        async with asyncio.timeout(15):
            await app.run(settings)
    assert len(raised.value.sentence.splitlines()) == 1
    return raised.value


async def test_a_server_that_cannot_be_reached_for_the_join_is_status_4(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tower_agent.enrol.RETRY_PAUSES_SECONDS", (0.01,))
    error = await failure(site.settings(await site.invite()))
    assert error.exit_code == 4 and "connection refused" in str(error)


async def test_a_refused_join_is_status_5(site: Site) -> None:
    async with site.server():
        join = await site.invite()
        async with site.agent(site.settings(join)):
            pass
        again = site.settings(join, state_dir=site.agent_state.with_name("other"))
        error = await failure(again)
    assert error.exit_code == 5 and "already" in str(error)


async def test_a_removed_cluster_is_status_5_with_the_remedy(site: Site) -> None:
    await site.joined()
    async with site.store() as store:
        await store.remove_cluster(parse_cluster_name("alpha"), datetime.now(UTC))
    async with site.server():
        error = await failure(site.settings())
    assert error.exit_code == 5 and "`tower token create alpha`" in str(error)


async def test_a_member_that_cannot_be_used_is_status_1(
    site: Site, tmp_path: Path
) -> None:
    join = await site.invite()
    missing = site.settings(join, kubeconfig=tmp_path / "nothing-here")
    error = await failure(missing)
    assert error.exit_code == 1 and "nothing-here" in str(error)
    site.member.answer_with = 401
    error = await failure(site.settings(join))
    assert error.exit_code == 1 and "own credential" in str(error)


async def test_no_pod_and_no_kubeconfig_is_status_1(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    error = await failure(site.settings(await site.invite(), kubeconfig=None))
    assert error.exit_code == 1 and "--kubeconfig" in str(error)


async def test_settings_that_cannot_be_used_later_are_status_1(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.joined()
    no_ca = tmp_path / "no-ca.crt"
    error = await failure(site.settings(ca_file=no_ca))
    assert error.exit_code == 1 and str(no_ca) in str(error)
    no_ca.write_text("not a certificate")
    error = await failure(site.settings(ca_file=no_ca))
    assert error.exit_code == 1 and "--ca-file" in str(error)
    taken = HostPort(host=LOOPBACK, port=int(site.member.address.split(":")[1]))
    error = await failure(site.settings(health=taken))
    assert error.exit_code == 1 and "--health" in str(error)


async def test_a_proxy_setting_that_is_none_is_status_1_and_shows_no_password(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credentials name loopback, which is excepted: so name another server."""
    await site.joined()
    file = site.agent_state / "credentials.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"server_host": "tower.test"}))
    monkeypatch.setenv("HTTPS_PROXY", "socks5://agent:hunter2@proxy:1080")
    error = await failure(site.settings())
    assert error.exit_code == 1 and "HTTPS_PROXY" in str(error)
    assert "hunter2" not in str(error)


async def test_a_join_string_that_is_none_fails_before_anything_is_asked(
    site: Site,
) -> None:
    bad = JoinSource(text="tower+join://nonsense")
    error = await failure(dataclasses.replace(site.settings(), join=bad))
    assert error.exit_code == 1
    gone = JoinSource(file=str(site.state / "no-such-file"))
    with pytest.raises(SettingsError, match="no-such-file"):
        await app.run(dataclasses.replace(site.settings(), join=gone))


async def test_without_join_string_and_credentials_it_is_wrong_usage(
    site: Site,
) -> None:
    error = await failure(site.settings())
    assert error.exit_code == 2
    assert "no join string" in str(error) and "--join-file" in str(error)


# As a process


@contextlib.asynccontextmanager
async def process(
    site: Site, *arguments: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith("_PROXY") and not name.startswith("TOWER_")
    }
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tower_agent",
        "run",
        "--state-dir",
        str(site.agent_state),
        "--kubeconfig",
        str(site.settings().kubeconfig),
        *arguments,
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def ready(running: asyncio.subprocess.Process, seconds: float) -> None:
    assert running.stdout is not None
    async with asyncio.timeout(seconds):
        line = await running.stdout.readline()
    assert line.startswith(b"tower-agent ready: alpha connected to "), line


async def test_an_agent_that_was_suspended_is_back_when_it_wakes(site: Site) -> None:
    """A stopped container, a laptop that slept: long enough for the server to give it up."""
    await site.joined()
    async with site.server(), process(site) as running:
        await ready(running, 15)
        await site.works()
        running.send_signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        # The server notices: it holds requests for an agent that is away, and ends them.
        while await asyncio.wait_for(site.ask(), 15):
            pass
        assert time.monotonic() - stopped_at < 10
        running.send_signal(signal.SIGCONT)
        await ready(running, 2.0)
        await site.works()
        # And a signal that is to stop it does.
        running.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.wait(), 5) == 0


async def test_a_signal_stops_an_agent_that_waits_for_its_server(site: Site) -> None:
    await site.joined()
    async with process(site) as running:
        async with connection_attempt(site.port):
            running.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(running.wait(), 5) == 0


async def turned_away(site: Site) -> None:
    """New requests are held for a while and end; one may still cross the news."""
    async with asyncio.timeout(10):
        while await site.ask():
            pass


async def test_a_stopped_agent_answers_what_is_under_way_and_takes_nothing_new(
    site: Site,
) -> None:
    await site.joined()
    port = free_port()
    health = ("--health", f"{LOOPBACK}:{port}")
    async with site.server(), process(site, *health) as running:
        await ready(running, 15)
        asking = asyncio.ensure_future(site.ask("?slow"))
        await until(lambda: site.member.slow_requests)
        running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            while await is_ready(port):
                await asyncio.sleep(0.01)
        assert await get(port, "/readyz") == (
            503,
            "not ready: draining: the agent stops\n",
        )
        assert "tower_draining 1.0" in (await get(port, "/metrics"))[1]
        await turned_away(site)
        assert running.returncode is None and not asking.done()
        site.member.may_answer.set()
        assert (await asking).startswith(b"HTTP/1.1 200 ")
        assert await asyncio.wait_for(running.wait(), 5) == 0


async def test_a_stopped_agent_cuts_off_what_does_not_end_in_its_drain_time(
    site: Site,
) -> None:
    await site.joined()
    async with site.server(), process(site, "--drain-time", "1s") as running:
        await ready(running, 15)
        asking = asyncio.ensure_future(site.ask("?slow"))
        await until(lambda: site.member.slow_requests)
        stopped_at = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.wait(), 5) == 0
        assert 1.0 <= time.monotonic() - stopped_at < 4.0
        assert await asyncio.wait_for(asking, 1) == b"", "it ends and does not hang"
        site.member.may_answer.set()


async def test_a_second_signal_ends_a_drain_at_once(site: Site) -> None:
    await site.joined()
    async with site.server(), process(site) as running:
        await ready(running, 15)
        asking = asyncio.ensure_future(site.ask("?slow"))
        await until(lambda: site.member.slow_requests)
        running.send_signal(signal.SIGTERM)
        await turned_away(site)
        running.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.wait(), 1) == -signal.SIGTERM
        assert await asyncio.wait_for(asking, 1) == b""
        site.member.may_answer.set()


@contextlib.asynccontextmanager
async def connection_attempt(port: int) -> AsyncIterator[None]:
    """Listen, say nothing, and go on when somebody has dialled."""
    dialled = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.set()
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, LOOPBACK, port)
    try:
        async with asyncio.timeout(15):
            await dialled.wait()
        yield
    finally:
        server.close()
