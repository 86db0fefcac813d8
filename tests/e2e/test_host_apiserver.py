"""The host's apiserver, the real one, through tower_server.kube; and the definition of Cluster.

Covered: what a Cluster may be and what the apiserver says otherwise, what kubectl shows of one, status
written by server-side apply; a copy that survives a killed and a frozen apiserver; the lease between
servers, given back and left behind.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.testbed.controlplane import ControlPlane
from tower_server.kube import lease as lease_module
from tower_server.kube.access import open_access
from tower_server.kube.client import KubeClient
from tower_server.kube.errors import Conflict, Rejected, Unreachable
from tower_server.kube.informer import Informer
from tower_server.kube.lease import Lease
from tower_server.kube.resources import CLUSTERS, LEASES, SECRETS, Object

NAMESPACE = "default"


@pytest.fixture
async def client(host: ControlPlane) -> AsyncIterator[KubeClient]:
    client = KubeClient(await open_access(host.kubeconfig))
    yield client
    await client.close()


async def make(client: KubeClient, name: str, **spec: Any) -> Object:
    return await client.create(CLUSTERS, CLUSTERS.object(None, name, spec=spec))


# -- the definition ----------------------------------------------------------------------


async def test_the_shortest_cluster_is_a_proxy(client: KubeClient) -> None:
    made = await client.create(CLUSTERS, CLUSTERS.object(None, "shortest"))
    assert made["spec"] == {"connection": {"type": "proxy"}, "paused": False}
    await client.delete(CLUSTERS, None, "shortest")


SECRET = {"kubeconfigSecret": {"name": "s"}}


@pytest.mark.parametrize(
    ("name", "spec", "sentence"),
    [
        ("a", {"connection": {"type": "direct"}}, "needs kubeconfigSecret"),
        ("a", {"connection": SECRET}, "has no kubeconfigSecret"),
        ("a", {"connection": {"type": "carrier-pigeon"}}, "Unsupported value"),
        ("a.b", {}, "becomes a DNS label"),
        ("a" * 64, {}, "becomes a DNS label"),
        ("a", {"allowedUsers": [""]}, "at least 1 chars"),
        ("a", {"allowedGroups": ["g", "g"]}, "Duplicate"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_a_sentence(
    client: KubeClient, name: str, spec: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Rejected, match=sentence):
        await make(client, name, **spec)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"type": "proxy"}, {"type": "direct", **SECRET}),
        ({"type": "direct", **SECRET}, {"type": "proxy", "kubeconfigSecret": None}),
        ({"type": "direct", **SECRET}, None),  # the default would be another
    ],
)
async def test_the_type_of_a_connection_cannot_change(
    client: KubeClient, first: dict[str, Any], second: dict[str, Any] | None
) -> None:
    await make(client, "fixed", connection=first)
    with pytest.raises(Rejected, match="the type cannot change"):
        await client.merge(CLUSTERS, None, "fixed", {"spec": {"connection": second}})
    await client.delete(CLUSTERS, None, "fixed")


async def test_the_secret_of_a_direct_connection_can_change(client: KubeClient) -> None:
    made = await make(client, "moved", connection={"type": "direct", **SECRET})
    assert made["spec"]["connection"]["kubeconfigSecret"]["key"] == "value"
    other = {"connection": {"kubeconfigSecret": {"name": "other"}}}
    await client.merge(CLUSTERS, None, "moved", {"spec": other})
    await client.delete(CLUSTERS, None, "moved")


async def test_status_is_applied_apart_and_shown_by_kubectl(
    client: KubeClient, host: ControlPlane
) -> None:
    labels = {
        "topology.kubernetes.io/region": "eu-1",
        "topology.kubernetes.io/zone": "eu-1b",
        "tower.dev/provider": "metal",
    }
    await client.create(
        CLUSTERS, CLUSTERS.object(None, "shown", metadata={"labels": labels})
    )
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "Ready",
        "lastTransitionTime": "2026-11-24T08:00:00Z",
    }
    status = {
        "conditions": [condition],
        "kubernetesVersion": "v1.37.0",
        "nodeCount": 3,
        "roundTrip": "12.3ms",
        "agentVersion": "0.1.0",
    }
    await client.apply(
        CLUSTERS, CLUSTERS.object(None, "shown", status=status), subresource="status"
    )
    # Applying again without a field takes it away, and touches nobody else's.
    del status["roundTrip"]
    applied = await client.apply(
        CLUSTERS, CLUSTERS.object(None, "shown", status=status), subresource="status"
    )
    assert "roundTrip" not in applied["status"]
    assert applied["metadata"]["labels"] == labels
    kubectl = await asyncio.create_subprocess_exec(
        *(host.kubectl, "--kubeconfig", host.kubeconfig, "get", "clusters", "-o=wide"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await kubectl.communicate()
    header, row = output.decode().splitlines()
    for column in ("TYPE", "READY", "KUBERNETES", "NODES", "RTT", "AGENT", "PROVIDER"):
        assert column in header
    for cell in ("proxy", "True", "v1.37.0", "3", "0.1.0", "eu-1", "eu-1b", "metal"):
        assert cell in row.split()
    await client.delete(CLUSTERS, None, "shown")


# -- a copy that stays current -----------------------------------------------------------


async def test_a_copy_survives_an_apiserver_that_dies_and_one_that_freezes(
    client: KubeClient, host: ControlPlane
) -> None:
    informer: Informer[Object] = Informer(
        client, SECRETS, NAMESPACE, lambda item: item, labelSelector="test=copy"
    )
    told = asyncio.Event()
    informer.listen(lambda name: told.set())

    async def change(name: str) -> None:
        told.clear()
        labels = {"test": "copy"}
        secret = SECRETS.object(NAMESPACE, name, metadata={"labels": labels})
        await client.create(SECRETS, secret)
        async with asyncio.timeout(10):
            await told.wait()

    task = asyncio.get_running_loop().create_task(informer.run())
    await informer.synced.wait()
    await change("one")
    host.kill("kube-apiserver")
    with pytest.raises(Unreachable):
        await client.get(SECRETS, NAMESPACE, "one")
    assert informer.names() == ["one"]
    host.restart("kube-apiserver")
    await asyncio.to_thread(host.wait_ready)
    await change("two")
    host.freeze("kube-apiserver")
    try:
        with pytest.raises(Unreachable, match="no answer in time"):
            await client.get(SECRETS, NAMESPACE, "one")
    finally:
        host.thaw("kube-apiserver")
    await change("three")
    assert sorted(informer.names()) == ["one", "three", "two"]
    task.cancel()
    for name in informer.names():
        await client.delete(SECRETS, NAMESPACE, name)


async def test_of_two_writers_one_loses(client: KubeClient) -> None:
    read = await client.create(SECRETS, SECRETS.object(NAMESPACE, "swap"))
    await client.replace(SECRETS, {**read, "stringData": {"by": "first"}})
    with pytest.raises(Conflict):
        await client.replace(SECRETS, {**read, "stringData": {"by": "second"}})
    with pytest.raises(Conflict):
        await client.delete(
            SECRETS, NAMESPACE, "swap", revision=read["metadata"]["resourceVersion"]
        )
    await client.delete(SECRETS, NAMESPACE, "swap")


# -- the lease ---------------------------------------------------------------------------


class Candidate:
    """A server that wants the lease."""

    def __init__(self, client: KubeClient, identity: str) -> None:
        self.held = asyncio.Event()
        self.lost = asyncio.Event()
        self.lease = Lease(client, NAMESPACE, "test", identity, self._changed)
        self.task = asyncio.get_running_loop().create_task(self.lease.run())

    def _changed(self, held: bool) -> None:
        (self.held if held else self.lost).set()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def test_one_server_holds_the_lease_and_gives_it_back(
    client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.1)
    async with asyncio.timeout(20):
        one = Candidate(client, "one")
        await one.held.wait()
        two = Candidate(client, "two")
        await asyncio.sleep(0.5)  # several renewals: the second one does not get it
        assert not two.held.is_set() and one.lease.held
        await one.stop()
        await two.held.wait()
        # Back under the same name, as a container that was killed: at once.
        two.lease.held = False  # so that it does not give it back
        await two.stop()
        again = Candidate(client, "two")
        await again.held.wait()
        item = await client.get(LEASES, NAMESPACE, "test")
        assert item["spec"]["holderIdentity"] == "two"
        await again.stop()
    await client.delete(LEASES, NAMESPACE, "test")


async def test_a_lease_that_is_left_behind_is_taken_after_its_time(
    client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease_module, "EXPIRE_SECONDS", 1.0)
    async with asyncio.timeout(20):
        dead = Candidate(client, "dead")
        await dead.held.wait()
        dead.lease.held = False
        await dead.stop()
        heir = Candidate(client, "heir")
        start = asyncio.get_running_loop().time()
        await heir.held.wait()
        assert asyncio.get_running_loop().time() - start >= 0.9
        await heir.stop()
    await client.delete(LEASES, NAMESPACE, "test")


async def test_when_the_apiserver_is_away_nobody_thinks_to_hold_it_for_long(
    client: KubeClient, host: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease_module, "EXPIRE_SECONDS", 1.0)
    async with asyncio.timeout(60):
        one = Candidate(client, "one")
        await one.held.wait()
        one.held.clear()
        host.kill("kube-apiserver")
        await one.lost.wait()
        host.restart("kube-apiserver")
        await asyncio.to_thread(host.wait_ready)
        await one.held.wait()
        await one.stop()
    await client.delete(LEASES, NAMESPACE, "test")


def test_the_definition_is_what_kubectl_explains(host: ControlPlane) -> None:
    _, definition = host.request(
        "GET",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/clusters.tower.dev",
    )
    conditions = {c["type"]: c["status"] for c in definition["status"]["conditions"]}
    assert conditions["Established"] == "True", json.dumps(conditions)
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert definition["spec"]["scope"] == "Cluster"
