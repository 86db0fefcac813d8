"""What is read from Cluster objects and Secrets, and the join Secret. Pure."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from certs.keys import PrivateBytes
from certs.names import ClusterName, parse_cluster_name
from shared.durations import rfc3339
from tower_server.kube.resources import CLUSTERS, SECRETS, Object
from tower_server.stores.ledger import CLUSTER_LABEL

__all__ = [
    "FINALIZER",
    "JOIN_TYPE",
    "ClusterView",
    "SecretView",
    "cluster_object",
    "cluster_of",
    "digest_of",
    "join_secret",
    "join_secret_name",
    "kubeconfig_secret",
    "kubeconfig_secret_name",
    "secret_view",
]

# Holds a Cluster back until its member is revoked and cut, which needs nobody but us.
FINALIZER = "tower.dev/revoke"

JOIN_TYPE = "tower.dev/join"
_TOKEN = "tower.dev/token-id"
_EXPIRES = "tower.dev/expires-at"
_FINGERPRINT = "tower.dev/fingerprint"

DEFAULT_KEY = "value"


@dataclass(frozen=True, kw_only=True)
class ClusterView:
    """A Cluster object, as far as we look at it."""

    name: ClusterName
    uid: str
    revision: str
    generation: int
    finalizers: tuple[str, ...]
    is_deleting: bool
    is_paused: bool
    is_direct: bool
    # Of a direct connection.
    secret_name: str | None
    secret_key: str
    allow_users: tuple[str, ...]
    allow_groups: tuple[str, ...]
    agent_image: str | None
    status: Mapping[str, Any]

    @property
    def has_finalizer(self) -> bool:
        return FINALIZER in self.finalizers


@dataclass(frozen=True, kw_only=True)
class SecretView:
    """A Secret beside the ledgers: a join Secret without its secret, or one with a kubeconfig, perhaps."""

    name: str
    # Of a join Secret.
    token_id: str | None = None
    fingerprint: str | None = None
    owner_uid: str | None = None
    cluster: str | None = None
    # Of any other.
    data: Mapping[str, PrivateBytes]


def cluster_of(item: Object) -> ClusterView | None:
    """Read a Cluster; None if its name is none (then the CRD is not ours)."""
    metadata, spec = item["metadata"], item.get("spec") or {}
    connection = spec.get("connection") or {}
    secret = connection.get("kubeconfigSecret") or {}
    try:
        name = parse_cluster_name(metadata["name"])
    except ValueError:
        return None
    return ClusterView(
        name=name,
        uid=metadata["uid"],
        revision=metadata["resourceVersion"],
        generation=metadata.get("generation", 0),
        finalizers=tuple(metadata.get("finalizers") or ()),
        is_deleting="deletionTimestamp" in metadata,
        is_paused=bool(spec.get("paused")),
        is_direct=connection.get("type") == "direct",
        secret_name=secret.get("name"),
        secret_key=secret.get("key") or DEFAULT_KEY,
        allow_users=tuple(spec.get("allowedUsers") or ()),
        allow_groups=tuple(spec.get("allowedGroups") or ()),
        agent_image=spec.get("agentImage"),
        status=item.get("status") or {},
    )


def secret_view(item: Object) -> SecretView:
    """Read a Secret that is no ledger."""
    metadata = item["metadata"]
    annotations = metadata.get("annotations") or {}
    labels = metadata.get("labels") or {}
    if item.get("type") == JOIN_TYPE:
        owners = metadata.get("ownerReferences") or [{}]
        return SecretView(
            name=metadata["name"],
            token_id=annotations.get(_TOKEN),
            fingerprint=annotations.get(_FINGERPRINT),
            owner_uid=owners[0].get("uid"),
            cluster=labels.get(CLUSTER_LABEL),
            data={},
        )
    data = item.get("data") or {}
    return SecretView(
        name=metadata["name"],
        data={key: PrivateBytes(base64.b64decode(data[key])) for key in data},
    )


def join_secret_name(cluster: ClusterName) -> str:
    """The name of the Secret with which a member joins."""
    return f"tower-join-{cluster}"


def join_secret(
    namespace: str,
    cluster: ClusterView,
    *,
    token_id: str,
    expires_at: datetime,
    fingerprint: str,
    join: str,
    manifest: str,
) -> Object:
    """The Secret to hand over to the member's admin; with its Cluster gone, it is garbage."""
    return SECRETS.object(
        namespace,
        join_secret_name(cluster.name),
        metadata={
            "labels": {
                CLUSTER_LABEL: cluster.name,
                "app.kubernetes.io/part-of": "tower",
            },
            "annotations": {
                _TOKEN: token_id,
                _EXPIRES: rfc3339(expires_at),
                _FINGERPRINT: fingerprint,
            },
            "ownerReferences": [
                {
                    "apiVersion": CLUSTERS.api_version,
                    "kind": CLUSTERS.kind,
                    "name": cluster.name,
                    "uid": cluster.uid,
                }
            ],
        },
        type=JOIN_TYPE,
        data={
            "join": base64.b64encode(join.encode()).decode(),
            "manifest.yaml": base64.b64encode(manifest.encode()).decode(),
        },
    )


def kubeconfig_secret_name(cluster: ClusterName) -> str:
    """Where the kubeconfig of a cluster lies that was added by the command line."""
    return f"tower-kubeconfig-{cluster}"


def kubeconfig_secret(
    namespace: str, cluster: ClusterName, kubeconfig: bytes
) -> Object:
    """The Secret of a direct connection that was added by the command line."""
    return SECRETS.object(
        namespace,
        kubeconfig_secret_name(cluster),
        metadata={
            "labels": {CLUSTER_LABEL: cluster, "app.kubernetes.io/part-of": "tower"}
        },
        type="Opaque",
        data={DEFAULT_KEY: base64.b64encode(kubeconfig).decode()},
    )


def cluster_object(cluster: ClusterName, *, is_direct: bool) -> Object:
    """The Cluster object of a member that came without one: invited or added by the command line."""
    connection: dict[str, Any] = {"type": "direct" if is_direct else "proxy"}
    if is_direct:
        connection["kubeconfigSecret"] = {"name": kubeconfig_secret_name(cluster)}
    return CLUSTERS.object(
        None,
        cluster,
        metadata={"finalizers": [FINALIZER]},
        spec={"connection": connection},
    )


def digest_of(data: bytes) -> str:
    """Tells one content from another, without saying anything of it."""
    return hashlib.sha256(data).hexdigest()
