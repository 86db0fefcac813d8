"""A KubernetesStore in a namespace of its own on a real control plane."""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.testbed.controlplane import ControlPlane
from tower_server.kube.access import open_access
from tower_server.kube.client import KubeClient
from tower_server.stores.kubernetes import KubernetesStore

__all__ = ["new_kubernetes_store", "new_namespace"]

_numbers = itertools.count()


def new_namespace(host: ControlPlane) -> str:
    """Make a namespace that nobody else uses."""
    name = f"tower-{os.getpid()}-{next(_numbers)}"
    status, answer = host.request(
        "POST", "/api/v1/namespaces", {"metadata": {"name": name}}
    )
    assert status == 201, answer
    return name


@asynccontextmanager
async def new_kubernetes_store(
    host: ControlPlane, namespace: str | None = None
) -> AsyncIterator[KubernetesStore]:
    """A store in a new namespace, or another server's in one that is there."""
    client = KubeClient(await open_access(host.kubeconfig))
    try:
        store = await KubernetesStore.open(client, namespace or new_namespace(host))
        try:
            yield store
        finally:
            await store.close()
    finally:
        await client.close()
