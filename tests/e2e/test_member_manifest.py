"""The manifest in a real member: what the agent's ServiceAccount can do with it, and applying it again.

Covered: the preflight passes with exactly the manifest's rights and names a right that is not
there; credentials in the Secret survive `kubectl apply` of either kind; no other Secret is readable.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certs.authority import Authority
from certs.chains import pem
from certs.joining import JoinString, new_token
from certs.keys import certificate_request, parse_private_key
from certs.names import parse_cluster_name
from shared.http.apiserver import from_kubeconfig
from shared.http.upstream import UpstreamPool
from shared.member.client import MemberClient
from shared.member.preflight import PreflightFailed, check_member
from tests.e2e.member import Member
from tower_agent.credentials import Credentials, CredentialsUnavailable, SecretStore
from tower_server.manifest import AGENT_NAMESPACE, CREDENTIALS_SECRET, MemberManifest

pytestmark = pytest.mark.e2e

NOW = datetime.now(UTC)


def manifest(authority: Authority) -> str:
    token_id, secret = new_token()
    join = JoinString(
        cluster=parse_cluster_name("alpha"),
        host="tower.example.com",
        port=8443,
        token_id=token_id,
        secret=secret,
        pin=authority.pin,
    )
    return MemberManifest(join=join).to_yaml()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open_or_create(tmp_path / "ca", "clusters.tower.internal", NOW)


@pytest.fixture
async def agent(alpha: Member, authority: Authority) -> AsyncIterator[MemberClient]:
    """The member's apiserver with the ServiceAccount of a manifest that was just applied."""
    alpha.admin.quiet("apply", "-f", "-", stdin=manifest(authority))
    kubeconfig = alpha.plane.service_account_kubeconfig(AGENT_NAMESPACE, "tower-agent")
    pool = UpstreamPool(
        from_kubeconfig(kubeconfig, monotonic=time.monotonic),
        loop=asyncio.get_running_loop(),
    )
    yield MemberClient(pool)
    await pool.close()


async def test_the_manifest_grants_what_the_preflight_asks_for(
    alpha: Member, agent: MemberClient
) -> None:
    names = {"allow_users": ["tower:admin"], "allow_groups": ["tower:cluster-admins"]}
    facts = await check_member(agent, apiserver="the member", **names)
    namespace = alpha.request("GET", "/api/v1/namespaces/kube-system")
    assert facts.uid == namespace["metadata"]["uid"]
    assert facts.apiserver_version.startswith("v1.")


@pytest.mark.parametrize("name", ["system:kube-controller-manager", "*"])
async def test_the_agent_may_act_as_nobody_else(agent: MemberClient, name: str) -> None:
    with pytest.raises(
        PreflightFailed, match="lacks rights in the member .impersonate users"
    ):
        await check_member(
            agent,
            apiserver="the member",
            allow_users=[name],
            allow_groups=["tower:cluster-admins"],
        )


async def test_applying_the_manifest_again_leaves_the_agents_key_alone(
    alpha: Member, agent: MemberClient, authority: Authority
) -> None:
    store = SecretStore(agent, namespace=AGENT_NAMESPACE, name=CREDENTIALS_SECRET)
    assert await store.load() is None
    credentials = await joined(store, authority)
    try:
        for how in ([], ["--server-side", "--force-conflicts"], []):
            text = manifest(authority)
            alpha.admin.quiet("apply", *how, "-f", "-", stdin=text)
            assert await store.load() == credentials
    finally:
        path = f"/api/v1/namespaces/{AGENT_NAMESPACE}/secrets/{CREDENTIALS_SECRET}"
        alpha.plane.request(
            "PATCH", path, {"data": None}, "application/merge-patch+json"
        )


async def joined(store: SecretStore, authority: Authority) -> Credentials:
    """Keep credentials as a join would."""
    key_pem = await store.pending_key("token1")
    assert await store.pending_key("token1") == key_pem
    alpha = parse_cluster_name("alpha")
    csr = certificate_request(parse_private_key(key_pem))
    credentials = Credentials(
        cluster=alpha,
        zone=authority.zone,
        audience="tower://clusters.tower.internal/server",
        server_host="tower.example.com",
        server_port=8443,
        pin=authority.pin,
        token_id="token1",
        ca_pem=authority.pem,
        certificate_pem=pem(authority.issue_agent(csr, alpha, NOW)),
        key_pem=key_pem,
        outer_mode="tower",
    )
    await store.save(credentials)
    assert await store.load() == credentials
    return dataclasses.replace(credentials)


async def test_the_agent_reads_no_other_secret(agent: MemberClient) -> None:
    for name in ("tower-agent-join", "missing"):
        store = SecretStore(agent, namespace=AGENT_NAMESPACE, name=name)
        with pytest.raises(CredentialsUnavailable, match="forbidden"):
            await store.load()
