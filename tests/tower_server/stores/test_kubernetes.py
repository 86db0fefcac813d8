"""What only the Kubernetes store promises, with a real apiserver.

Covered: everything survives a restart; several servers on one store (single use, a new join is known at
once, other servers hear of changes); the apiserver away (reading goes on, writing says why, nothing is
half-done) and back; a damaged Secret; rights that are missing; empty Secrets go.
"""

import asyncio
import base64
from datetime import UTC, datetime, timedelta

import pytest

from certs.names import ClusterName, parse_cluster_name
from tests.fakes.kubernetes_store import new_kubernetes_store, new_namespace
from tests.testbed.controlplane import ControlPlane
from tower_server.kube.access import open_access
from tower_server.kube.client import KubeClient
from tower_server.membership import JoinRefused, TokenUse
from tower_server.stores import StoreUnavailable
from tower_server.stores import kubernetes as kubernetes_module
from tower_server.stores.kubernetes import KubernetesStore
from tower_server.tokens import TokenId, TokenRecord

pytestmark = pytest.mark.e2e

ALPHA = parse_cluster_name("alpha")
NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)


def token(name: str = "tok1", cluster: ClusterName = ALPHA) -> TokenRecord:
    return TokenRecord(
        id=TokenId(name),
        cluster=cluster,
        verifier=b"v" * 32,
        created_at=NOW,
        expires_at=NOW + timedelta(days=1),
    )


def use(number: int = 1, name: str = "tok1") -> TokenUse:
    return TokenUse(
        token_id=TokenId(name),
        cluster=ALPHA,
        member_uid="uid-a",
        agent_version="0.1.0",
        key_pin=f"sha256:{number}",
        serial=number,
        certificate=b"chain %d" % number,
        at=NOW,
    )


async def test_everything_survives_a_restart(host: ControlPlane) -> None:
    async with new_kubernetes_store(host) as store:
        await store.add_token(token(), NOW)
        await store.use_token(use())
        before = await store.list_tokens(), await store.list_clusters()
    async with new_kubernetes_store(host, store.namespace) as store:
        assert (await store.list_tokens(), await store.list_clusters()) == before


async def test_of_joins_at_several_servers_one_succeeds(host: ControlPlane) -> None:
    async with (
        new_kubernetes_store(host) as one,
        new_kubernetes_store(host, one.namespace) as two,
        new_kubernetes_store(host, one.namespace) as three,
    ):
        await one.add_token(token(), NOW)
        outcomes = await asyncio.gather(
            *(
                store.use_token(use(number))
                for number, store in enumerate([one, two, three] * 5, 1)
            ),
            return_exceptions=True,
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
        assert len(won) == 1
        assert sum(isinstance(o, JoinRefused) for o in outcomes) == 14
        for store in (one, two, three):
            cluster = await store.get_cluster(ALPHA)
            assert cluster is not None
            assert won == [b"chain %d" % (cluster.agent_serial or 0)]


async def test_what_one_server_writes_another_one_knows(host: ControlPlane) -> None:
    async with (
        new_kubernetes_store(host) as one,
        new_kubernetes_store(host, one.namespace) as two,
    ):
        heard: asyncio.Queue[ClusterName] = asyncio.Queue()
        two.listen(heard.put_nowait)
        await one.add_token(token(), NOW)
        # Before its watch can have said so.
        assert await two.get_token(TokenId("tok1")) == token()
        await one.use_token(use())
        assert await two.get_cluster(ALPHA) == await one.get_cluster(ALPHA)
        async with asyncio.timeout(5):
            assert await heard.get() == ALPHA
        await one.remove_cluster(ALPHA, NOW)
        async with asyncio.timeout(5):
            while await two.list_clusters():
                await heard.get()


async def test_an_unknown_token_or_cluster_is_asked_for_and_not_there(
    host: ControlPlane,
) -> None:
    async with new_kubernetes_store(host) as store:
        assert await store.get_token(TokenId("none")) is None
        assert await store.get_token(TokenId("?!")) is None
        assert await store.get_cluster(ALPHA) is None


async def test_while_the_apiserver_is_away_reading_goes_on(host: ControlPlane) -> None:
    async with new_kubernetes_store(host) as store:
        await store.add_token(token(), NOW)
        await store.use_token(use())
        await store.add_token(token("tok2"), NOW)
        host.kill("kube-apiserver")
        try:
            known = await store.get_cluster(ALPHA)
            assert known is not None and len(await store.list_tokens()) == 2
            assert await store.get_token(TokenId("tok2")) == token("tok2")
            # Unknown to us is not unknown: another server may know it.
            with pytest.raises(StoreUnavailable):
                await store.get_cluster(parse_cluster_name("beta"))
            for attempt in (
                store.use_token(use(2, "tok2")),
                store.add_token(token("tok3"), NOW),
                store.revoke_token(TokenId("tok2"), NOW),
                store.remove_cluster(ALPHA, NOW),
            ):
                with pytest.raises(
                    StoreUnavailable, match="tunnels and requests go on"
                ):
                    await attempt
        finally:
            host.restart("kube-apiserver")
            await asyncio.to_thread(host.wait_ready)
        assert await store.get_cluster(ALPHA) == known
        assert await store.get_token(TokenId("tok2")) == token("tok2")
        assert await store.use_token(use(2, "tok2")) == b"chain 2"
        async with asyncio.timeout(10):
            while not store.is_current:
                await asyncio.sleep(0.05)


async def test_a_damaged_secret_is_said_and_left_as_it_is(host: ControlPlane) -> None:
    async with new_kubernetes_store(host) as store:
        await store.add_token(token(), NOW)
        path = f"/api/v1/namespaces/{store.namespace}/secrets/tower-ledger-alpha"
        junk = base64.b64encode(b"{}").decode()
        status, _ = host.request(
            "PATCH", path, {"data": {"ledger": junk}}, "application/merge-patch+json"
        )
        assert status == 200
        with pytest.raises(StoreUnavailable, match="tower-ledger-alpha"):
            await store.use_token(use())
        _, secret = host.request("GET", path)
        assert secret["data"] == {"ledger": junk}


async def test_without_the_rights_it_says_what_is_missing(host: ControlPlane) -> None:
    namespace = new_namespace(host)
    client = KubeClient(await open_access(host.alice_kubeconfig))
    with pytest.raises(StoreUnavailable, match="files/rbac.yaml") as caught:
        await KubernetesStore.open(client, namespace)
    assert "alice" in str(caught.value)
    await client.close()


async def test_without_an_answer_it_does_not_wait_for_ever(
    host: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_module, "OPEN_SECONDS", 1.0)
    client = KubeClient(await open_access(host.kubeconfig))
    host.freeze("kube-apiserver")
    try:
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailable, match="does not answer"):
                await KubernetesStore.open(client, "default")
    finally:
        host.thaw("kube-apiserver")
        await client.close()


async def test_a_cluster_of_which_nothing_is_known_leaves_no_secret(
    host: ControlPlane,
) -> None:
    async with new_kubernetes_store(host) as store:
        await store.add_token(token(), NOW)
        later = NOW + timedelta(days=9)
        other = token("tok2", parse_cluster_name("beta"))
        await store.add_token(other, later)
        assert await store.list_tokens() == [other]
        _, secrets = host.request(
            "GET", f"/api/v1/namespaces/{store.namespace}/secrets"
        )
        names = [secret["metadata"]["name"] for secret in secrets["items"]]
        assert names == ["tower-ledger-beta"]
