"""The whole server in this process: what it says, what it refuses to start on, what it leaves.

Covered: the lines on stdout and their order, a member's whole way (token, join, tunnel,
report, status, re-join, removal), what a restart knows, a second server, addresses and
state directories that cannot be used (one sentence each, nothing left open), the stop with
agents and half-done requests, the renewal of the server's certificate.
"""

import asyncio
import io
import re
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509

from certs.contexts import unverified
from certs.joining import JoinString
from shared.errors import Code
from shared.http.status import AGENT
from shared.member.preflight import MemberFacts
from shared.member.questions import MemberAnswer
from shared.member.report import MemberProbe
from shared.program import ProgramFailed
from shared.tunnel.connection import TunnelConnection
from tests.fakes.host_side import Sink, open_sockets, until
from tests.fakes.tunnel_pair import LOOPBACK, Owner, both_loops
from tests.tower_server.test_client_hello import openssl_hello
from tower_agent.credentials import Credentials, DirectoryStore
from tower_agent.dialer import Dialer
from tower_agent.enrol import JoinSettings, obtain_credentials
from tower_agent.reporter import Reporter
from tower_server import app
from tower_server.settings import ServeSettings, parse_serve_settings
from tower_server.state_directory import locked_state_directory
from tower_server.stores import StoreUnavailable

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextmanager
def state_directory() -> Iterator[Path]:
    # Not pytest's: the path of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="tower-") as directory:
        yield Path(directory)


def settings(state: Path, **changes: Any) -> ServeSettings:
    arguments = {"state_dir": state, "listen": f"{LOOPBACK}:0"} | changes
    return parse_serve_settings(**arguments)


class Running:
    """A server that runs, and its admin."""

    def __init__(self, state: Path, output: str, task: "asyncio.Task[None]") -> None:
        self.state = state
        self.lines = output.splitlines()
        self.task = task
        self.port = int(self.lines[-1].rpartition(":")[2])

    async def admin(self, method: str, path: str, **body: object) -> dict[str, Any]:
        connector = aiohttp.UnixConnector(str(self.state / "admin.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:
            url = f"http://tower/admin/v1/{path}"
            async with session.request(method, url, json=body or None) as answer:
                assert answer.status < 300, await answer.text()
                document: dict[str, Any] = await answer.json()
                return document

    async def status(self, name: str = "alpha") -> dict[str, Any]:
        document = await self.admin("GET", f"clusters/{name}")
        return dict(document.get("cluster", document))

    async def until_status(self, **wanted: object) -> None:
        found: dict[str, Any] = {}
        try:
            async with asyncio.timeout(5):
                while not wanted.items() <= found.items():
                    found = await self.status()
        except TimeoutError:
            raise AssertionError(f"not {wanted}, but {found}") from None

    async def join(self, directory: Path) -> Credentials:
        """A member's join with a new token, by the agent's own code."""
        token = await self.admin("POST", "tokens", cluster="alpha")
        (text,) = (v for v in token.values() if str(v).startswith("tower+join://"))

        async def facts() -> MemberFacts:
            return MemberFacts(uid="a-uid", apiserver_version="v1.36.0")

        return await obtain_credentials(
            DirectoryStore(directory),
            JoinString.parse(text),
            facts,
            JoinSettings(agent_version="0.1.0"),
        )


@asynccontextmanager
async def serving(served: ServeSettings) -> AsyncIterator[Running]:
    """Serve until the block ends; the end must be quick."""
    output = io.StringIO()
    with redirect_stdout(output):
        task = asyncio.get_running_loop().create_task(app.serve(served))
        try:
            await until(lambda: task.done() or " ready on " in output.getvalue(), 10)
            if task.done():
                await task
            yield Running(served.state_dir, output.getvalue(), task)
        finally:
            task.cancel()
            async with asyncio.timeout(app.STOP_SECONDS + 3):
                await asyncio.wait((task,))
    assert task.cancelled()


@asynccontextmanager
async def running(served: ServeSettings) -> AsyncIterator[Running]:
    """Serve until the block ends; it leaves nothing."""
    before = open_sockets()
    async with serving(served) as server:
        yield server
    await until(lambda: open_sockets() <= before)
    assert not served.admin_socket.exists()
    with locked_state_directory(served.state_dir):
        pass


async def refused(served: ServeSettings) -> str:
    """The sentence with which a server refuses to start; it leaves nothing open."""
    before = open_sockets()
    with pytest.raises((ProgramFailed, StoreUnavailable)) as caught:
        async with asyncio.timeout(10):
            await app.serve(served)
    await until(lambda: open_sockets() <= before)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith("."), sentence
    return sentence


async def connect(credentials: Credentials, owner: Owner) -> TunnelConnection:
    """An agent's tunnel, once the server's HELLO is here."""
    tunnel = await Dialer(credentials, owner, environ={}).dial()
    await tunnel.ready
    return tunnel


# Serving


@both_loops
async def test_a_member_goes_all_the_way_from_token_to_removal() -> None:
    with state_directory() as state:
        async with running(settings(state / "s")) as server:
            credentials = await server.join(state / "agent")
            assert (await server.status())["state"] != "connected"

            async def version(*_: object, **__: object) -> MemberAnswer:
                return MemberAnswer(status=200, body={"gitVersion": "v1.36.0"})

            owner = Owner()
            tunnel = await connect(credentials, owner)
            probe = MemberProbe(
                version, speaker=AGENT, expires_at=lambda: None, clock=time.monotonic
            )
            reporter = Reporter(credentials, probe)
            reporter.connected(tunnel, resumed=False)
            asking = asyncio.get_running_loop().create_task(reporter.run())
            # Its control stream is not a user's.
            await server.until_status(
                state="connected", apiserver_version="v1.36.0", open_streams=0
            )
            # A re-join ends the old certificate's tunnel, and the new one's is let in.
            again = await server.join(state / "agent-2")
            await until(lambda: owner.lost_reasons)
            assert owner.notices[0].code == Code.REVOKED
            new_owner = Owner()
            await connect(again, new_owner)
            await server.until_status(state="connected", sessions=1)
            await server.admin("DELETE", "clusters/alpha")
            await until(lambda: new_owner.lost_reasons)
            assert new_owner.notices[0].code == Code.REVOKED
            asking.cancel()
            await asyncio.wait((asking,))


@both_loops
async def test_the_ready_line_is_the_last_and_names_the_real_port() -> None:
    with state_directory() as state:
        entries = [f"{LOOPBACK}:0=alpha/web", f"{LOOPBACK}:0=beta/ssh"]
        served = settings(state / "s", tcp_entries=entries)
        async with running(served) as server:
            first, second, ready = server.lines
            assert re.fullmatch(r"tcp entry 127\.0\.0\.1:\d+ -> alpha/web", first)
            assert re.fullmatch(r"tcp entry 127\.0\.0\.1:\d+ -> beta/ssh", second)
            assert ready == f"tower-server ready on {LOOPBACK}:{server.port}"
            for port in (int(first.split()[2].rpartition(":")[2]), server.port):
                _, writer = await asyncio.open_connection(LOOPBACK, port)
                writer.close()
            status = await server.admin("GET", "status")
            assert status["public_address"] == f"{LOOPBACK}:{server.port}"


async def test_a_cluster_has_a_name_from_its_join_on_and_after_a_restart() -> None:
    async def first_bytes(port: int) -> bytes:
        """What a control plane of alpha gets within a moment; held ones get nothing."""
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(openssl_hello("alpha.clusters.tower.internal"))
        try:
            async with asyncio.timeout(0.3):
                return await reader.read(100)
        except TimeoutError:
            return b"held"
        finally:
            writer.close()

    with state_directory() as state:
        async with running(settings(state / "s")) as server:
            assert (await first_bytes(server.port)).endswith(bytes((2, 112)))
            credentials = await server.join(state / "agent")
            assert await first_bytes(server.port) == b"held"
        changed = settings(state / "s", listen=f"{LOOPBACK}:{server.port}")
        async with running(changed) as server:
            assert await first_bytes(server.port) == b"held"
            assert (await server.status())["state"] == "away"
            tunnel = await connect(credentials, Owner())
            await server.until_status(state="connected")
            tunnel.abort("the test is over")
            await server.until_status(state="away")


# Stopping


@both_loops
async def test_stopping_tells_agents_and_does_not_wait_for_strangers() -> None:
    with state_directory() as state:
        owner = Owner()
        writers: list[asyncio.StreamWriter] = []
        async with running(settings(state / "s")) as server:
            await connect(await server.join(state / "agent"), owner)
            context = unverified()
            for sent in (b"", b"POST /join HTTP/1.1\r\nHost: x\r\n"):
                _, writer = await asyncio.open_connection(
                    LOOPBACK, server.port, ssl=context, server_hostname=LOOPBACK
                )
                writers.append(writer)
                writer.write(sent + (b"Content-Length: 9\r\n\r\n1" if sent else b""))
            started = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - started < app.STOP_SECONDS
        await until(lambda: owner.lost_reasons)
        assert owner.notices[0].code == Code.GOING_AWAY
        for writer in writers:
            writer.transport.abort()


async def test_stopping_refuses_connections_before_it_ends_tunnels() -> None:
    # An agent dials again at once after GOAWAY: it must not find this server once more.
    with state_directory() as state:
        async with running(settings(state / "s")) as server:
            owner = Owner()
            outcome: list[int] = []

            def going_away(*_: object) -> None:
                with socket.socket() as probe:
                    outcome.append(probe.connect_ex((LOOPBACK, server.port)))

            owner.going_away = going_away  # type: ignore[method-assign]
            await connect(await server.join(state / "agent"), owner)
        await until(lambda: outcome)
        assert outcome[0] != 0


@both_loops
async def test_a_successor_serves_while_streams_of_the_old_server_end() -> None:
    """Its address, its state directory and its admin socket are free from the first moment on."""

    async def connect_entry(server: Running) -> Client:
        port = int(server.lines[0].split()[2].rpartition(":")[2])
        return await asyncio.open_connection(LOOPBACK, port)

    with state_directory() as state:
        owner, sinks = Owner(), list[Sink]()
        owner.on_stream = lambda stream: sinks.append(Sink(stream))
        entries = [f"{LOOPBACK}:0=alpha/web"]
        async with serving(settings(state / "s", tcp_entries=entries)) as old:
            tunnel = await connect(await old.join(state / "agent"), owner)
            credentials = await DirectoryStore(state / "agent").load()
            assert credentials is not None
            reader, writer = await connect_entry(old)
            writer.write(b"before")
            await until(lambda: sinks and sinks[0].received == b"before")
            old.task.cancel()
            await until(lambda: owner.notices)
            assert owner.notices[0].code == Code.GOING_AWAY
            listen = f"{LOOPBACK}:{old.port}"
            served = settings(state / "s", tcp_entries=entries, listen=listen)
            async with serving(served) as new:
                new_tunnel = await connect(credentials, Owner())
                await new.until_status(state="connected", sessions=1)
                writer.write(b", after")
                await until(lambda: sinks[0].received == b"before, after")
                sinks[0].stream.write(b"the last word")
                sinks[0].stream.write_eof()
                assert await reader.read() == b"the last word"
                assert not old.task.done() and not owner.lost_reasons
                writer.close()
                async with asyncio.timeout(5):
                    await asyncio.wait((old.task,))
                await until(lambda: owner.lost_reasons)
                assert (await new.status())["state"] == "connected"
                new_tunnel.abort("the test is over")
        assert tunnel.closed


@both_loops
async def test_what_has_not_ended_in_the_drain_time_is_cut_off() -> None:
    with state_directory() as state:
        owner, sinks = Owner(), list[Sink]()
        owner.on_stream = lambda stream: sinks.append(Sink(stream))
        served = settings(
            state / "s", tcp_entries=[f"{LOOPBACK}:0=alpha/web"], drain_time="1s"
        )
        async with running(served) as server:
            await connect(await server.join(state / "agent"), owner)
            port = int(server.lines[0].split()[2].rpartition(":")[2])
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(b"x")
            await until(lambda: sinks)
            stopped_at = asyncio.get_running_loop().time()
        took = asyncio.get_running_loop().time() - stopped_at
        assert 1.0 <= took < 1.0 + app.STOP_SECONDS
        assert [str(end) for end in sinks[0].ends] == ["the server stops (going_away)"]
        with pytest.raises(ConnectionError):  # and not a clean end
            await reader.read()
        writer.close()


# Not starting


async def test_a_second_server_on_the_same_state_directory_is_refused() -> None:
    with state_directory() as state:
        async with running(settings(state / "s")) as server:
            # With everything else of its own.
            other = settings(state / "s", admin_socket=str(state / "other.sock"))
            sentence = await refused(other)
            assert "Another tower-server" in sentence and str(state / "s") in sentence
            assert (await server.admin("GET", "status"))["version"]


async def test_a_taken_address_is_named_with_its_option() -> None:
    with state_directory() as state, socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        address = f"{LOOPBACK}:{taken.getsockname()[1]}"
        sentence = await refused(settings(state / "s", listen=address))
        assert address in sentence and "--listen" in sentence
        entry = f"{address}=alpha/web"
        sentence = await refused(settings(state / "s", tcp_entries=[entry]))
        assert address in sentence and "--tcp-entry" in sentence
        assert sentence.count(address) == sentence.count("in use") == 1
        # Nothing of that stands in the way of the next start.
        async with running(settings(state / "s")):
            pass


async def test_an_address_of_another_machine_is_one_sentence() -> None:
    with state_directory() as state:
        sentence = await refused(settings(state / "s", listen="192.0.2.1:8443"))
        assert "192.0.2.1:8443" in sentence and "--listen" in sentence


async def test_a_taken_admin_socket_is_refused_and_the_port_is_free_again() -> None:
    with state_directory() as state:
        async with running(settings(state / "s")):
            other = settings(state / "t", admin_socket=str(state / "s" / "admin.sock"))
            assert "already running" in await refused(other)


async def test_a_damaged_state_directory_is_one_sentence() -> None:
    with state_directory() as state:
        async with running(settings(state / "s")):
            pass

        async def refused_with(name: str, content: bytes) -> str:
            path = state / "s" / name
            kept = path.read_bytes()
            path.write_bytes(content)
            try:
                return await refused(settings(state / "s"))
            finally:
                path.write_bytes(kept)

        assert "server.key" in await refused_with("server.key", b"noise")
        assert "backup" in await refused_with("ca/ca.key", b"noise")
        assert "damaged" in await refused_with("tower.sqlite", b"noise" * 1000)
        (state / "s" / "tower.sqlite").chmod(0o644)
        assert "chmod 600" in await refused(settings(state / "s"))
        (state / "s" / "tower.sqlite").chmod(0o600)
        assert "zone" in await refused(settings(state / "s", zone="other.zone"))
        in_zone = "a.clusters.tower.internal:1"
        sentence = await refused(settings(state / "s", public_address=in_zone))
        assert "lies in the zone" in sentence
        async with running(settings(state / "s")):
            pass


# Renewal


@both_loops
async def test_the_servers_certificate_is_renewed_while_it_runs() -> None:
    ahead = timedelta()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + ahead

    async def shown(port: int) -> x509.Certificate:
        _, writer = await asyncio.open_connection(
            LOOPBACK, port, ssl=unverified(), server_hostname=LOOPBACK
        )
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return x509.load_der_x509_certificate(der)

    with state_directory() as state, pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "datetime", Clock)
        patch.setattr(app, "RENEWAL_CHECK_SECONDS", 0.01)
        async with running(settings(state / "s")) as server:
            first = await shown(server.port)
            await asyncio.sleep(0.05)  # several looks: it is not due
            assert await shown(server.port) == first
            ahead = timedelta(days=61)
            async with asyncio.timeout(5):
                while (second := await shown(server.port)) == first:
                    await asyncio.sleep(0.01)
            assert second.public_key() == first.public_key()
            assert second.not_valid_after_utc > datetime.now(UTC) + timedelta(days=140)
