"""A cluster's access in the forms in which other control planes look for it. Pure.

Each form is what its consumer documents, and nothing of ours:

    secret           a Secret with the kubeconfig under `kubeconfig`
    argocd           the cluster Secret of Argo CD: found by its label, told apart by its URL
                     (argo-cd.readthedocs.io, "Declarative Setup", Clusters)
    flux             a Secret for `spec.kubeConfig.secretRef` of Kustomization and HelmRelease: the
                     kubeconfig under `value` (fluxcd.io, "Remote clusters")
    cluster-api      the Secret that Cluster API makes for a workload cluster, NAME-kubeconfig, with
                     its type and label (cluster-api.sigs.k8s.io, "Certificate Management")
    clusterprofile   a ClusterProfile of SIG Multicluster (KEP-4322, KEP-5339): where the cluster is and
                     how it is, without a credential; consumers run `tower credential` for that

Whoever applies these objects may do so again at any time: the same access gives the same object.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from certs.names import ClusterName
from shared.durations import rfc3339

__all__ = [
    "ACCESS_PROVIDER",
    "CLUSTER_VARIABLE",
    "CLUSTER_MANAGER",
    "ClusterAccess",
    "Form",
    "Place",
    "exec_credential",
    "published",
]

# As which providers' configurations know us (`providers[].name` in a consumer's file), and
# which manager's the ClusterProfiles are.
ACCESS_PROVIDER = CLUSTER_MANAGER = "tower"

# KEP-5339: added to the environment of the consumer's exec plugin where it permits that. (Its
# sibling for arguments wants a list, which the definition of ClusterProfile 0.1.2 refuses.)
_ENVIRONMENT_EXTENSION = "clusterprofiles.multicluster.x-k8s.io/exec/additional-envs"
CLUSTER_VARIABLE = "TOWER_CLUSTER"

# Reserved by Kubernetes: handed to the plugin in KUBERNETES_EXEC_INFO, as `spec.cluster.config`.
_CONFIG_EXTENSION = "client.authentication.k8s.io/exec"

# Where everybody looks when nothing is said.
_DEFAULT_NAMESPACES = {"argocd": "argocd", "flux": "flux-system"}

EXPIRES_ANNOTATION = "tower.dev/expires-at"
CLUSTER_LABEL = "tower.dev/cluster"


class Form(StrEnum):
    """What a cluster's access can be written as."""

    SECRET = "secret"
    ARGOCD = "argocd"
    FLUX = "flux"
    CLUSTER_API = "cluster-api"
    CLUSTER_PROFILE = "clusterprofile"

    @property
    def default_namespace(self) -> str:
        return _DEFAULT_NAMESPACES.get(self.value, "default")

    @property
    def holds_a_credential(self) -> bool:
        return self is not Form.CLUSTER_PROFILE


@dataclass(frozen=True, kw_only=True)
class ClusterAccess:
    """How one identity reaches one cluster. No repr of the key."""

    cluster: ClusterName
    url: str
    # None: it is the host of the URL.
    tls_server_name: str | None
    ca_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    not_after: datetime
    kubeconfig: str = field(repr=False)
    # Kubernetes' version of the member, where it is known.
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the object goes, and what it is found by."""

    namespace: str
    # None: the form's own rule, or `tower-CLUSTER`.
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def published(form: Form, access: ClusterAccess, place: Place) -> dict[str, Any]:
    """Return the object to apply. All forms but `clusterprofile` contain the private key."""
    match form:
        case Form.SECRET:
            data = {"kubeconfig": access.kubeconfig}
            return _secret(access, place, data)
        case Form.ARGOCD:
            return _argocd(access, place)
        case Form.FLUX:
            return _secret(access, place, {"value": access.kubeconfig})
        case Form.CLUSTER_API:
            name = place.name or f"{access.cluster}-kubeconfig"
            secret = _secret(access, place, {"value": access.kubeconfig}, name=name)
            secret["type"] = "cluster.x-k8s.io/secret"
            labels = secret["metadata"]["labels"]
            labels["cluster.x-k8s.io/cluster-name"] = str(access.cluster)
            return secret
        case Form.CLUSTER_PROFILE:
            return _cluster_profile(access, place)


def exec_credential(access: ClusterAccess, api_version: str) -> str:
    """What a credential plugin prints (client.authentication.k8s.io). It contains the private key."""
    credential = {
        "apiVersion": api_version,
        "kind": "ExecCredential",
        "status": {
            "expirationTimestamp": rfc3339(access.not_after),
            "clientCertificateData": access.certificate_pem.decode("ascii"),
            "clientKeyData": access.key_pem.decode("ascii"),
        },
    }
    return json.dumps(credential) + "\n"


def _argocd(access: ClusterAccess, place: Place) -> dict[str, Any]:
    config = {
        "tlsClientConfig": {
            "insecure": False,
            **_named("serverName", access),
            "caData": _base64(access.ca_pem),
            "certData": _base64(access.certificate_pem),
            "keyData": _base64(access.key_pem),
        }
    }
    data = {
        "name": str(access.cluster),
        "server": access.url,
        "config": json.dumps(config),
    }
    secret = _secret(access, place, data)
    secret["metadata"]["labels"]["argocd.argoproj.io/secret-type"] = "cluster"
    return secret


def _named(field: str, access: ClusterAccess) -> dict[str, str]:
    name = access.tls_server_name
    return {} if name is None else {field: name}


def _secret(
    access: ClusterAccess,
    place: Place,
    data: Mapping[str, str],
    *,
    name: str | None = None,
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(access, place, name)
        | {"annotations": {EXPIRES_ANNOTATION: rfc3339(access.not_after)}},
        "type": "Opaque",
        # Not stringData: what is applied is then what is read, and a comparison tells the truth.
        "data": {key: _base64(text.encode()) for key, text in data.items()},
    }


def _cluster_profile(access: ClusterAccess, place: Place) -> dict[str, Any]:
    metadata = _metadata(access, place, place.name or str(access.cluster))
    metadata["labels"]["x-k8s.io/cluster-manager"] = CLUSTER_MANAGER
    cluster = {
        "server": access.url,
        **_named("tls-server-name", access),
        "certificate-authority-data": _base64(access.ca_pem),
        "extensions": [
            {
                "name": _ENVIRONMENT_EXTENSION,
                "extension": {CLUSTER_VARIABLE: str(access.cluster)},
            },
            {"name": _CONFIG_EXTENSION, "extension": {"cluster": str(access.cluster)}},
        ],
    }
    status: dict[str, Any] = {
        "accessProviders": [{"name": ACCESS_PROVIDER, "cluster": cluster}]
    }
    if access.version is not None:
        status["version"] = {"kubernetes": access.version}
    return {
        "apiVersion": "multicluster.x-k8s.io/v1alpha1",
        "kind": "ClusterProfile",
        "metadata": metadata,
        "spec": {
            "displayName": str(access.cluster),
            "clusterManager": {"name": CLUSTER_MANAGER},
        },
        "status": status,
    }


def _metadata(access: ClusterAccess, place: Place, name: str | None) -> dict[str, Any]:
    return {
        "name": name or place.name or f"tower-{access.cluster}",
        "namespace": place.namespace,
        "labels": {
            **place.labels,
            CLUSTER_LABEL: str(access.cluster),
            "app.kubernetes.io/managed-by": "tower",
        },
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
