"""Members that the server reaches by itself, from the front door to a fake apiserver, on both loops.

Covered: identity and credential of requests, what status says, an apiserver that goes and comes, a
credential that is refused and replaced, files that are renewed, another cluster at the address,
allow-lists, certificates, kubeconfigs that cannot be used, checks before adding, removal, drain.
"""

import asyncio
import base64
import dataclasses
import json
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.contexts import sealed_client
from certs.keys import PrivateBytes
from shared.errors import Code, StreamReset
from shared.http.kubeconfig import BadKubeconfig
from shared.member.preflight import MemberFacts, PreflightFailed
from tests.certs.zone import ALPHA, BETA, NOW, ZONE, Holder
from tests.fakes.dialling import LOOPBACK, the_zone
from tests.fakes.host_side import open_sockets, until
from tests.fakes.member_api import MemberApi, member_api
from tests.fakes.session_pair import Recorder
from tests.fakes.tunnel_pair import both_loops
from tests.fakes.upstream import certificate_and_key, loopback_tls
from tower_server import direct_cluster, reachability
from tower_server.direct import DirectConnections
from tower_server.front_door import FrontDoor
from tower_server.membership import DirectMember
from tower_server.registry import ClusterStatus, Registry

SERVER_TLS, _ = loopback_tls()
CA_PEM, _ = certificate_and_key()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with shorter times; their sum is checked in test_reachability.py."""
    monkeypatch.setattr(reachability, "LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(reachability, "LOOK_AGAIN_SECONDS", 0.01)


def kubeconfig(
    port: int, user: dict[str, Any] | None = None, **cluster: Any
) -> PrivateBytes:
    fields = {
        "server": f"https://{LOOPBACK}:{port}",
        "certificate-authority-data": base64.b64encode(CA_PEM.encode()).decode(),
        **cluster,
    }
    document = {
        "current-context": "m",
        "contexts": [{"name": "m", "context": {"cluster": "m", "user": "m"}}],
        "clusters": [{"name": "m", "cluster": fields}],
        "users": [{"name": "m", "user": user or {"token": "one"}}],
    }
    return PrivateBytes(yaml.safe_dump(document).encode())


class Client:
    """A control plane's connection, kept open over several requests."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader, self._writer = reader, writer

    async def get(self, path: str = "/echo") -> tuple[int, dict[str, Any]]:
        request = f"GET /clusters/alpha{path} HTTP/1.1\r\nHost: h\r\n\r\n"
        self._writer.write(request.encode())
        async with asyncio.timeout(5):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            body = await self._reader.readexactly(int(length))
        return int(head.split()[1]), json.loads(body)

    async def ended(self) -> None:
        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                assert await self._reader.read() == b""


class Site:
    """The server's parts around a direct connection, and its member."""

    def __init__(self) -> None:
        self.member = MemberApi(authorization="Bearer one")
        self.port = 0
        self.now = NOW
        self.registry = Registry()
        self.door = FrontDoor(ZONE, self.registry, self._no_own)
        self.direct = DirectConnections(
            self.registry,
            the_zone().authority,
            lambda stream: self.door.stream_accepted(stream),
            clock=lambda: self.now,
            may_name_files=True,
        )
        self.registry.when_cut(self.direct.end)
        self.door_port = 0
        self.clients: list[asyncio.StreamWriter] = []

    @staticmethod
    async def _no_own(_accepted: socket.socket) -> None:
        raise AssertionError("nobody asks for the server itself")

    def record(self, **changes: Any) -> DirectMember:
        fields: dict[str, Any] = {
            "cluster": ALPHA,
            "member_uid": self.member.uid,
            "kubeconfig": kubeconfig(self.port),
            "allow_users": frozenset({"tower:admin"}),
            "allow_groups": frozenset({"tower:cluster-admins"}),
            "is_insecure_allowed": False,
            "added_at": NOW,
            "updated_at": NOW,
        }
        return DirectMember(**fields | changes)

    @property
    def status(self) -> ClusterStatus:
        status = self.registry.status(ALPHA)
        assert status is not None
        return status

    @property
    def is_reached(self) -> bool:
        return self.status.state == "connected"

    async def connect(self, user: Holder | None = None) -> Client:
        user = user or the_zone().user()
        context = sealed_client(user.chain_pem, user.key_pem, the_zone().ca_pem)
        reader, writer = await asyncio.open_connection(
            LOOPBACK, self.door_port, ssl=context, server_hostname=f"alpha.{ZONE}"
        )
        self.clients.append(writer)
        return Client(reader, writer)

    @asynccontextmanager
    async def apiserver(self) -> AsyncIterator[None]:
        """Its member's apiserver, always at the same address."""
        async with member_api(self.member, tls=SERVER_TLS, port=self.port):
            self.port = int(self.member.address.rpartition(":")[2])
            yield


@asynccontextmanager
async def site(*, is_up: bool = True) -> AsyncIterator[Site]:
    before = open_sockets()
    here = Site()
    _, here.door_port = here.door.listen(LOOPBACK, 0)
    try:
        if is_up:
            async with here.apiserver():
                yield here
        else:
            async with here.apiserver():
                pass
            yield here
    finally:
        for writer in here.clients:
            writer.transport.abort()
        await here.direct.close("the test is over")
        await here.door.close()
        assert not list(here.registry.sessions())
    await until(lambda: open_sockets() <= before)


@both_loops
async def test_a_request_arrives_as_its_user_with_the_kubeconfigs_credential() -> None:
    async with site() as here:
        here.direct.apply(here.record())
        code, heard = await (await here.connect()).get()
        assert code == 200
        assert heard["Authorization"] == "Bearer one"
        assert heard["Impersonate-User"] == "tower:admin"
        assert heard["Impersonate-Group"] == "tower:cluster-admins"
        assert here.direct.answers()["alpha"].by_apiserver == {200: 1}
        # The front door no longer counts the caller as a stranger.
        await until(lambda: not here.door._half_open)


@both_loops
async def test_status_is_that_of_any_cluster() -> None:
    async with site() as here:
        here.direct.apply(here.record())
        await until(lambda: here.is_reached and here.status.rtt_seconds is not None)
        status = here.status
        assert (status.apiserver_version, status.apiserver_error) == ("v1.34.1", None)
        assert status.report.node_count == 3
        assert status.member_uid == here.member.uid
        assert (status.agent_version, status.sessions) == (None, 1)
        assert 0 < (status.rtt_seconds or 0) < 1
        assert here.registry.readings()["alpha"].sessions == 1


@both_loops
async def test_an_apiserver_that_goes_is_noticed_and_comes_back_by_itself() -> None:
    async with site(is_up=False) as here:
        async with here.apiserver():
            here.direct.apply(here.record())
            await until(lambda: here.is_reached)
            client = await here.connect()
            assert (await client.get())[0] == 200
        await until(lambda: not here.is_reached)
        assert "refused" in str(here.status.apiserver_error)
        assert here.status.apiserver_version == "v1.34.1"
        # On the same connection: it is not the control plane's fault.
        code, status = await client.get()
        assert (code, status["kind"], status["code"]) == (502, "Status", 502)
        assert "the server cannot reach the apiserver at" in status["message"]
        async with here.apiserver():
            await until(lambda: here.is_reached)
            assert here.status.apiserver_error is None
            assert (await client.get())[0] == 200


@both_loops
async def test_a_member_that_is_down_at_the_start_is_away_until_it_is_not() -> None:
    async with site(is_up=False) as here:
        here.direct.apply(here.record())
        assert here.status.state == "away"
        await until(lambda: here.status.apiserver_error is not None)
        async with here.apiserver():
            await until(lambda: here.is_reached)


@both_loops
async def test_a_refused_credential_is_said_and_another_is_used_at_once() -> None:
    async with site() as here:
        here.member.authorization = "Bearer two"
        here.direct.apply(here.record())
        await until(lambda: here.status.apiserver_error is not None)
        assert "does not accept the credential in the kubeconfig" in str(
            here.status.apiserver_error
        )
        client = await here.connect()
        code, status = await client.get()
        assert code == 502
        assert "`tower cluster set-kubeconfig alpha`" in status["message"]
        renewed = kubeconfig(here.port, {"token": "two"})
        here.direct.apply(here.record(kubeconfig=renewed))
        assert (await client.get())[0] == 200
        await until(lambda: here.is_reached)


@both_loops
async def test_a_kubeconfig_with_another_address_is_used_by_open_connections() -> None:
    async with site() as here, member_api(tls=SERVER_TLS) as (other, _):
        here.direct.apply(here.record())
        client = await here.connect()
        await client.get()
        port = int(other.address.rpartition(":")[2])
        here.direct.apply(here.record(kubeconfig=kubeconfig(port)))
        assert (await client.get())[0] == 200
        assert "/echo" in [path for path, _ in other.requests]


@both_loops
async def test_a_token_file_that_is_renewed_needs_nobody() -> None:
    async with site() as here, here_is_a_folder() as folder:
        (folder / "token").write_text("one")
        user = {"tokenFile": str(folder / "token")}
        here.direct.apply(here.record(kubeconfig=kubeconfig(here.port, user)))
        client = await here.connect()
        assert (await client.get())[0] == 200
        (folder / "token").write_text("two")
        here.member.authorization = "Bearer two"
        # The first refusal makes us read it again.
        await until_answered(client, 200)


@both_loops
async def test_a_ca_file_that_is_renewed_is_read_again() -> None:
    async with site() as here, here_is_a_folder() as folder:
        (folder / "ca").write_bytes(the_zone().ca_pem)  # some other CA
        files = {
            "certificate-authority": str(folder / "ca"),
            "certificate-authority-data": None,
        }
        here.direct.apply(here.record(kubeconfig=kubeconfig(here.port, **files)))
        client = await here.connect()
        code, status = await client.get()
        assert code == 502 and "not trusted" in status["message"]
        (folder / "ca").write_text("half a certificate")
        await asyncio.sleep(0.05)
        (folder / "ca").write_text(CA_PEM)
        await until_answered(client, 200)


async def until_answered(client: Client, code: int) -> None:
    async with asyncio.timeout(5):
        while (await client.get())[0] != code:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def here_is_a_folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@both_loops
async def test_another_cluster_at_the_address_is_not_served() -> None:
    async with site() as here:
        real, checks = here.member.uid, direct_cluster.CHECK_UID_EVERY_SECONDS
        direct_cluster.CHECK_UID_EVERY_SECONDS = 0.01
        try:
            here.direct.apply(here.record())
            client = await here.connect()
            assert (await client.get())[0] == 200
            here.member.uid = "another"
            await client.ended()
            code, status = await (await here.connect()).get()
            assert code == 502
            assert (
                "that of another cluster than 'alpha' (UID another"
                in (status["message"])
            )
            await until(lambda: not here.is_reached)
            assert "another cluster" in str(here.status.apiserver_error)
            here.member.uid = real
            await until(lambda: here.is_reached)
            assert (await (await here.connect()).get())[0] == 200
        finally:
            direct_cluster.CHECK_UID_EVERY_SECONDS = checks


@both_loops
async def test_the_allow_list_decides_and_counts_at_once_when_it_changes() -> None:
    async with site() as here:
        here.direct.apply(here.record())
        client = await here.connect()
        assert (await client.get())[0] == 200
        here.direct.apply(here.record(allow_groups=frozenset({"viewers"})))
        await client.ended()
        code, status = await (await here.connect()).get()
        assert code == 403
        assert "group 'tower:cluster-admins'" in status["message"]
        assert "--allow-group tower:cluster-admins" in status["message"]
        assert "the server does not act" in status["message"]


@both_loops
async def test_a_user_of_another_cluster_is_not_let_in() -> None:
    async with site() as here:
        here.direct.apply(here.record())
        stranger = await here.connect(the_zone().user(clusters=(BETA,)))
        assert (await stranger.get())[0] == 403


@both_loops
async def test_a_certificate_that_is_due_is_renewed_under_open_connections() -> None:
    async with site() as here:
        here.direct.apply(here.record())
        client = await here.connect()
        assert (await client.get())[0] == 200
        cluster = here.direct._clusters[ALPHA]
        first = cluster.certificate.serial
        here.direct.maintain(NOW + timedelta(days=19))
        assert cluster.certificate.serial == first
        here.direct.maintain(NOW + timedelta(days=21))
        assert cluster.certificate.serial != first
        assert (await client.get())[0] == 200


@both_loops
async def test_an_unreadable_kubeconfig_is_tried_again() -> None:
    async with site() as here, here_is_a_folder() as folder:
        files = {"certificate-authority": str(folder / "ca")}
        record = here.record(
            kubeconfig=kubeconfig(
                here.port, **files, **{"certificate-authority-data": None}
            )
        )
        with pytest.raises(BadKubeconfig, match="cannot read certificate-authority"):
            here.direct.apply(record)
        here.direct.apply_all([record])
        assert here.status.state == "never"
        (folder / "ca").write_text(CA_PEM)
        here.direct.maintain(NOW)
        await until(lambda: here.is_reached)


@both_loops
async def test_an_unusable_change_leaves_what_is_served_as_it_was() -> None:
    async with site() as here:
        here.direct.apply(here.record())
        client = await here.connect()
        with pytest.raises(BadKubeconfig):
            here.direct.apply(here.record(kubeconfig=PrivateBytes(b"no: kubeconfig")))
        assert (await client.get())[0] == 200


@both_loops
async def test_removing_it_ends_all_at_once_and_leaves_nothing() -> None:
    async with site() as here:
        here.direct.apply(here.record())
        client = await here.connect()
        await client.get()
        await here.registry.cut(ALPHA, Code.REVOKED, "an admin removed the cluster")
        here.registry.forget(ALPHA)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.get()
        assert len(here.direct) == 0 and not list(here.registry.sessions())
        here.direct.end(ALPHA, Code.REVOKED, "again")
        # And it can come back.
        here.direct.apply(here.record())
        assert (await (await here.connect()).get())[0] == 200


@both_loops
async def test_nothing_but_the_apiserver_is_to_be_had() -> None:
    async with site() as here:
        here.direct.apply(here.record())
        live = here.registry.pick(ALPHA)
        assert live is not None
        stream = live.connection.session.open_stream("tcp/web")
        stream.handler = near = Recorder(stream)
        await until(lambda: bool(near.ends))
        error = near.ends[0]
        assert isinstance(error, StreamReset) and error.code is Code.REFUSED


@both_loops
async def test_a_drain_lets_go_of_connections_between_two_requests() -> None:
    async with site() as here:
        here.direct.apply(here.record())
        client = await here.connect()
        await client.get()
        async with asyncio.timeout(5):
            draining = asyncio.ensure_future(here.direct.drain("stop", 4))
            await client.ended()
            await draining
        assert here.registry.pick(ALPHA) is None


@both_loops
async def test_many_members_are_looked_after() -> None:
    async with site() as here:
        members = [
            here.record(cluster=type(ALPHA)(f"m{n}"), member_uid=f"uid-{n}")
            for n in range(60)
        ]
        here.direct.apply_all(members)
        # Every one of them finds another cluster there, and is told so by a look of its own.
        await until(
            lambda: all(
                status.apiserver_error and "another cluster" in status.apiserver_error
                for status in here.registry.all()
            ),
            30,
        )


# -- before adding ---------------------------------------------------------------------------


@both_loops
async def test_a_check_tells_who_the_member_is() -> None:
    async with site() as here:
        facts = await here.direct.check(here.record(member_uid=""))
        assert facts == MemberFacts(uid=here.member.uid, apiserver_version="v1.34.1")
        assert len(here.direct) == 0 and not here.registry.knows("alpha")


@both_loops
async def test_nobody_on_the_way_gets_the_credential_unless_that_is_accepted() -> None:
    for scheme, tls in (("http", None), ("https", SERVER_TLS)):
        await refused_and_accepted(scheme, tls)


async def refused_and_accepted(scheme: str, tls: ssl.SSLContext | None) -> None:
    async with site() as here, member_api(tls=tls) as (other, _):
        insecure = kubeconfig(
            0,
            **{
                "server": f"{scheme}://{other.address}",
                "certificate-authority-data": None,
                "insecure-skip-tls-verify": scheme == "https",
            },
        )
        record = here.record(kubeconfig=insecure)
        with pytest.raises(BadKubeconfig, match="accept that with --insecure"):
            await here.direct.check(record)
        assert not other.requests
        accepted = dataclasses.replace(record, is_insecure_allowed=True)
        assert (await here.direct.check(accepted)).uid == other.uid


@both_loops
async def test_missing_rights_are_named_with_who_can_grant_them() -> None:
    async with site() as here:
        here.member.denied = {"impersonate users/tower:admin"}
        with pytest.raises(PreflightFailed) as caught:
            await here.direct.check(here.record())
        assert "The user in the kubeconfig lacks rights" in str(caught.value)
        assert "impersonate users 'tower:admin'" in str(caught.value)
        assert "--allow-user" in str(caught.value)


@both_loops
async def test_what_stands_in_the_way_of_a_check_is_said() -> None:
    async with site() as here:
        wrong = here.record(kubeconfig=kubeconfig(here.port, {"token": "wrong"}))
        with pytest.raises(PreflightFailed, match="refuses the credential in the kube"):
            await here.direct.check(wrong)
        nobody = here.record(kubeconfig=kubeconfig(1))
        with pytest.raises(PreflightFailed, match="does not answer.*in the kubeconfig"):
            await here.direct.check(nobody)
