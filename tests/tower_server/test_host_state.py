"""The CA and the servers' identity in Secrets, with a real apiserver.

Covered: made at the first start and kept, several servers that start at once on nothing, an existing CA,
one that is missing where there are members, damage, another zone, renewal, a key that is damaged, no
namespace, no access.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certs.authority import SERVER_LIFETIME, Authority
from certs.joining import TokenId
from certs.keys import new_key, private_pem
from certs.names import DEFAULT_ZONE, parse_cluster_name
from shared.program import ProgramFailed
from tests.fakes.kubernetes_store import new_namespace
from tests.testbed.controlplane import ControlPlane
from tower_server.host_state import SERVER_SECRET, HostState, open_host_state
from tower_server.membership import TokenUse
from tower_server.settings import HostSettings
from tower_server.stores import StoreUnavailable
from tower_server.tokens import TokenRecord

pytestmark = pytest.mark.e2e

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOSTS = ["tower.example.com", "127.0.0.1"]

Start = Callable[..., Any]


@pytest.fixture
def namespace(host: ControlPlane) -> str:
    return new_namespace(host)


@pytest.fixture
async def start(host: ControlPlane, namespace: str) -> AsyncIterator[Start]:
    """Opens the state as a server does that starts."""
    async with AsyncExitStack() as stack:

        async def open_it(
            zone: str = DEFAULT_ZONE, now: datetime = NOW, ca_secret: str = ""
        ) -> HostState:
            settings = HostSettings(
                namespace=namespace,
                kubeconfig=host.kubeconfig,
                ca_secret=ca_secret or "tower-ca",
                may_create_ca=not ca_secret,
            )
            return await open_host_state(settings, zone, now, stack)

        yield open_it


def secret(host: ControlPlane, namespace: str, name: str) -> dict[str, bytes]:
    status, answer = host.request(
        "GET", f"/api/v1/namespaces/{namespace}/secrets/{name}"
    )
    assert status == 200, answer
    return {key: base64.b64decode(value) for key, value in answer["data"].items()}


def change(host: ControlPlane, namespace: str, name: str, **data: bytes) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
    fields = {
        key.replace("_", "."): base64.b64encode(value).decode()
        for key, value in data.items()
    }
    kind = "application/merge-patch+json"
    status, answer = host.request("PATCH", path, {"data": fields}, kind)
    assert status == 200, answer


async def joined(state: HostState) -> None:
    """Let a member join, whatever it is."""
    alpha, token_id = parse_cluster_name("alpha"), TokenId("tok1")
    token = TokenRecord(
        id=token_id,
        cluster=alpha,
        verifier=b"v" * 32,
        created_at=NOW,
        expires_at=NOW + timedelta(days=1),
    )
    await state.store.add_token(token, NOW)
    use = TokenUse(
        token_id=token_id,
        cluster=alpha,
        member_uid="uid",
        agent_version="0.1.0",
        key_pin="sha256:1",
        serial=1,
        certificate=b"chain",
        at=NOW,
    )
    await state.store.use_token(use)


async def test_the_first_start_makes_all_and_the_next_keeps_it(
    host: ControlPlane, namespace: str, start: Start
) -> None:
    first = await start()
    identity = await first.identity(HOSTS, NOW)
    ca = secret(host, namespace, "tower-ca")
    assert ca["tls.crt"] == first.authority.pem and b"PRIVATE" in ca["tls.key"]
    again = await start()
    assert again.authority.certificate == first.authority.certificate
    kept = await again.identity(HOSTS, NOW)
    assert (kept.key_pem, kept.chain_pem) == (identity.key_pem, identity.chain_pem)


async def test_servers_that_start_at_once_agree(start: Start) -> None:
    states = await asyncio.gather(*(start() for _ in range(5)))
    assert len({state.authority.pin for state in states}) == 1
    identities = await asyncio.gather(*(s.identity(HOSTS, NOW) for s in states))
    assert len({identity.chain_pem for identity in identities}) == 1


async def test_an_existing_ca_is_used_and_a_missing_one_is_not_made(
    host: ControlPlane, namespace: str, start: Start
) -> None:
    with pytest.raises(ProgramFailed, match="no Secret .*/mine, which --ca-secret"):
        await start(ca_secret="mine")
    authority, key_pem = Authority.create(DEFAULT_ZONE, NOW)
    data = {"tls.key": key_pem, "tls.crt": authority.pem}
    body = {
        "metadata": {"name": "mine"},
        "data": {k: base64.b64encode(v).decode() for k, v in data.items()},
    }
    host.request("POST", f"/api/v1/namespaces/{namespace}/secrets", body)
    state = await start(ca_secret="mine")
    assert state.authority.pin == authority.pin


async def test_where_there_are_members_a_missing_ca_was_lost(
    host: ControlPlane, namespace: str, start: Start
) -> None:
    await joined(await start())
    host.request("DELETE", f"/api/v1/namespaces/{namespace}/secrets/tower-ca")
    with pytest.raises(ProgramFailed, match="restore it from a backup"):
        await start()


async def test_a_damaged_ca_or_another_zone_is_one_sentence(
    host: ControlPlane, namespace: str, start: Start
) -> None:
    await start()
    with pytest.raises(ProgramFailed, match="not for the zone other.zone"):
        await start(zone="other.zone")
    change(host, namespace, "tower-ca", tls_key=private_pem(new_key()))
    with pytest.raises(
        ProgramFailed, match=f"the Secret {namespace}/tower-ca .*belong together"
    ):
        await start()
    change(host, namespace, "tower-ca", tls_key=b"")
    with pytest.raises(ProgramFailed, match="tls.key: the private key is damaged"):
        await start()


async def test_a_certificate_that_does_not_fit_is_replaced(
    host: ControlPlane, namespace: str, start: Start
) -> None:
    state = await start()
    first = await state.identity(HOSTS, NOW)
    late = NOW + SERVER_LIFETIME
    renewed = await state.identity(HOSTS, late)
    assert renewed.certificate.not_valid_after_utc > late
    assert renewed.key_pem == first.key_pem
    assert secret(host, namespace, SERVER_SECRET)["tls.crt"] == renewed.chain_pem
    change(host, namespace, SERVER_SECRET, tls_crt=b"junk")
    assert (await state.identity(HOSTS, late)).key_pem == first.key_pem
    change(host, namespace, SERVER_SECRET, tls_key=b"junk")
    with pytest.raises(ValueError, match="delete it and start again") as caught:
        await state.identity(HOSTS, late)
    assert "junk" not in str(caught.value)


async def test_who_cannot_get_in_says_what_to_give(host: ControlPlane) -> None:
    settings = HostSettings(
        namespace=None,
        kubeconfig=host.alice_kubeconfig,
        ca_secret="tower-ca",
        may_create_ca=True,
    )
    async with AsyncExitStack() as stack:
        with pytest.raises(ProgramFailed, match="--namespace"):
            await open_host_state(settings, DEFAULT_ZONE, NOW, stack)
        for changed, kind in (
            ({"kubeconfig": host.directory / "none"}, ProgramFailed),
            ({"namespace": "default"}, StoreUnavailable),
        ):
            fields = {**vars(settings), **changed}
            with pytest.raises(kind):
                await open_host_state(HostSettings(**fields), DEFAULT_ZONE, NOW, stack)
