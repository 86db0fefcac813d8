"""Two members behind one server: nothing of one is ever seen in the other.

Covered: kubectl's discovery cache with CRDs that share a plural and nothing else; ten
thousand interleaved requests, each answered by its own cluster and to its own question; a
certificate for one cluster is worth nothing at the other; one agent's death is no one else's.
"""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kubectl import Kubectl
from tests.e2e.member import Member
from tests.e2e.raw_client import Access, RawClient, works
from tests.e2e.tower import Tower, wait_until

REQUESTS = 10_000
# Enough that several are under way in every part at once, few enough for two cores.
CONNECTIONS_PER_CLUSTER = 12

# Sizes of the answers in bytes, so that heads and bodies fall differently into reads:
# nothing, one packet, several TLS records.
PADDINGS = (0, 1_000, 20_000)

IDENTITIES = "/api/v1/namespaces/default/configmaps"


def widget_definition(
    group: str, kind: str, version: str, scope: str
) -> dict[str, Any]:
    """A CRD whose plural is `widgets`."""
    schema = {
        "type": "object",
        "properties": {
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"widgets.{group}"},
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"plural": "widgets", "singular": kind.lower(), "kind": kind},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def test_discovery_caches_of_two_members_never_mix(
    tower_of_two: Tower, alpha: Member, beta: Member, tmp_path: Path
) -> None:
    # Same plural, and nothing else alike: group, version, kind, scope.
    definitions = {
        "alpha": ("one.example.com", "Widget", "v1", "Namespaced"),
        "beta": ("two.example.com", "Gizmo", "v2", "Cluster"),
    }
    kubectls: dict[str, Kubectl] = {}
    for member in (alpha, beta):
        group, kind, version, scope = definitions[member.name]
        definition = widget_definition(group, kind, version, scope)
        member.apply(definition)
        name = definition["metadata"]["name"]
        member.admin.quiet("wait", "--for=condition=Established", f"crd/{name}")
        kubeconfig = tower_of_two.kubeconfig(member.name)
        kubectls[member.name] = member.kubectl(kubeconfig, home=tmp_path)
    try:
        for name, kubectl in kubectls.items():
            group, kind, version, _ = definitions[name]
            widget = f"{{apiVersion: {group}/{version}, kind: {kind}, metadata: {{name: of-{name}}}}}"
            kubectl("apply", "-f", "-", stdin=widget)
        # Interleaved, so that each reads what the other has just put into the cache.
        for _ in range(3):
            for name, kubectl in kubectls.items():
                group, kind, version, _scope = definitions[name]
                got = kubectl("get", "widgets", "-o", "yaml")
                assert f"apiVersion: {group}/{version}" in got
                assert f"name: of-{name}" in got
                assert kind in kubectl("api-resources", "--api-group", group)
                listed = kubectl("api-resources", "-o", "name")
                assert [w for w in listed.split() if w.startswith("widgets.")] == [
                    f"widgets.{group}"
                ]
    finally:
        for member in (alpha, beta):
            group = definitions[member.name][0]
            member.admin.quiet("delete", f"crd/widgets.{group}")


def name_members(*members: Member) -> None:
    """Put each member's own name into it, in objects of several sizes."""
    for member in members:
        member.apply(
            *(
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": f"identity-{number}", "namespace": "default"},
                    "data": {"cluster": member.name, "padding": "x" * size},
                }
                for number, size in enumerate(PADDINGS)
            )
        )


async def ask_who_is_there(access: Access, expected: str, numbers: list[int]) -> int:
    """Ask one after the other on one connection; returns how many were answered rightly."""
    right = 0
    async with RawClient(access) as client:
        for number in numbers:
            # The apiserver repeats a request's Audit-ID in its answer: the answer is to this
            # very question, not merely from the right cluster.
            audit_id = str(uuid.uuid4())
            answer = await client.request(
                "GET",
                # Version 0: from the apiserver's cache, so that it is not etcd that we load.
                f"{IDENTITIES}/identity-{number % len(PADDINGS)}?resourceVersion=0",
                headers={"Audit-ID": audit_id},
            )
            assert answer.status == 200, answer
            assert answer.json()["data"]["cluster"] == expected
            assert answer.headers["audit-id"] == audit_id
            right += 1
    return right


@pytest.mark.timeout(180)
async def test_ten_thousand_interleaved_requests_reach_their_own_cluster(
    tower_of_two: Tower, alpha: Member, beta: Member
) -> None:
    name_members(alpha, beta)
    ways = [
        (Access(tower_of_two.kubeconfig(name)), name)
        for name in ("alpha", "beta")
        for _ in range(CONNECTIONS_PER_CLUSTER)
    ]
    numbers = list(range(REQUESTS))
    right = await asyncio.gather(
        *(
            ask_who_is_there(access, name, numbers[start :: len(ways)])
            for start, (access, name) in enumerate(ways)
        )
    )
    assert sum(right) == REQUESTS


async def test_a_certificate_for_one_cluster_is_refused_by_the_other(
    tower_of_two: Tower, alpha: Member, beta: Member
) -> None:
    path = "/api/v1/namespaces/default"
    of_alpha, of_beta = (
        Access(tower_of_two.kubeconfig(name)) for name in ("alpha", "beta")
    )
    assert of_alpha.context is not of_beta.context
    # beta's address and name, alpha's certificate.
    of_beta.context = of_alpha.context
    try:
        async with RawClient(of_beta) as client:
            answer = await client.request("GET", path)
    except (OSError, EOFError):
        return  # refused in the handshake: as good
    assert answer.status == 403
    assert "beta" in answer.json()["message"]


async def test_another_clusters_prefix_is_refused(
    tower_of_two: Tower, alpha: Member, beta: Member
) -> None:
    access = Access(tower_of_two.kubeconfig("alpha"))
    for prefix in ("/clusters/beta", "/clusters/alpha/../beta", "/clusters/%61lpha"):
        access.prefix = prefix
        async with RawClient(access) as client:
            answer = await client.request("GET", "/api/v1/namespaces/default")
        assert 400 <= answer.status < 500, (prefix, answer)


def test_one_agents_death_leaves_the_other_cluster_alone(
    tower_of_two: Tower, alpha: Member, beta: Member
) -> None:
    ways = {name: Access(tower_of_two.kubeconfig(name)) for name in ("alpha", "beta")}
    tower_of_two.agents["beta"].process.kill()
    wait_until(
        lambda: tower_of_two.cluster("beta")["state"] == "away", 5, "beta is away"
    )
    assert tower_of_two.cluster("alpha")["state"] == "connected"
    assert works(ways["alpha"])
    assert not works(ways["beta"])
