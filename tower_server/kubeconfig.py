"""What a kubeconfig of ours contains, and for whom one may be made. Pure.

It is an ordinary kubeconfig. Two things in it are on purpose:

- The URL has the cluster in its path, because kubectl keys its discovery cache, and Argo CD its
  clusters, by URL: with one URL for all, the CRDs of two members get mixed up.
- `tls-server-name` leads the connection to the member's agent: the server relays it by that
  name, sealed, and the agent is who has to prove the name. Without it the server itself
  answers: that is the gateway.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

import yaml

from certs.authority import DEFAULT_USER_LIFETIME, MAX_USER_BYTES, MAX_USER_LIFETIME
from certs.names import MAX_GROUPS, ClusterName, host_name, parse_principal
from shared.settings import HostPort

__all__ = [
    "DEFAULT_GROUPS",
    "DEFAULT_TTL",
    "DEFAULT_USER",
    "Face",
    "KubeconfigUser",
    "build_kubeconfig",
    "client_certificate",
    "credential_plugin",
    "merge_kubeconfigs",
    "MAX_TTL",
    "MIN_TTL",
    "check_user",
    "cluster_url",
    "tls_server_name",
]

# What an agent's manifest binds to cluster-admin in the member, unless its admin binds it to less.
DEFAULT_USER = "tower:admin"
DEFAULT_GROUPS = ("tower:cluster-admins",)

# A working day: a kubeconfig that leaks in the evening is worth nothing in the morning.
DEFAULT_TTL = DEFAULT_USER_LIFETIME

# Below a minute it would have expired before somebody has pasted the command that uses it.
MIN_TTL = timedelta(minutes=1)

# No user certificate outlives an agent's: see certs.authority.
MAX_TTL = MAX_USER_LIFETIME


class Face(StrEnum):
    """By which of the server's faces a kubeconfig leads to the cluster."""

    SEALED = "sealed"
    GATEWAY = "gateway"


@dataclass(frozen=True, kw_only=True)
class KubeconfigUser:
    """As whom the member will see the requests (`impersonatedUser` in its audit log)."""

    user: str
    groups: tuple[str, ...]


def check_user(user: str | None, groups: Sequence[str]) -> KubeconfigUser:
    """Put defaults where nothing is said, and refuse what no agent would accept.

    Who names a user and no groups gets none: nobody becomes an admin by default of another's name.

    Raises:
        ValueError: With one sentence.
    """
    if user is None and not groups:
        return KubeconfigUser(user=DEFAULT_USER, groups=DEFAULT_GROUPS)
    unique = tuple(dict.fromkeys(groups))
    if len(unique) > MAX_GROUPS:
        raise ValueError(
            f"{len(unique)} groups are more than the {MAX_GROUPS} that fit: bind one group of the member instead."
        )
    checked = DEFAULT_USER if user is None else user
    _check_name("user", checked)
    if len(checked.encode()) > MAX_USER_BYTES:
        raise ValueError(
            f"The user has more than {MAX_USER_BYTES} bytes, which do not fit into a certificate's name: "
            "use a shorter one."
        )
    for group in unique:
        _check_name("group", group)
    return KubeconfigUser(user=checked, groups=unique)


def cluster_url(public_address: HostPort, cluster: ClusterName) -> str:
    """The `server` of the cluster's kubeconfigs, also what one gives to Argo CD."""
    return f"https://{public_address}/clusters/{cluster}"


def tls_server_name(face: Face, cluster: ClusterName, zone: str) -> str | None:
    """Whom a client of this face has to ask for in TLS; None: the host of the URL."""
    return host_name(cluster, zone) if face is Face.SEALED else None


def client_certificate(certificate_pem: bytes, key_pem: bytes) -> dict[str, Any]:
    """The `user` of a kubeconfig that brings its certificate, and its private key, along."""
    return {
        "client-certificate-data": _base64(certificate_pem),
        "client-key-data": _base64(key_pem),
    }


def credential_plugin(arguments: Sequence[str]) -> dict[str, Any]:
    """The `user` of a kubeconfig without a secret: kubectl asks `tower credential` for one."""
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "tower",
            "args": list(arguments),
            "interactiveMode": "Never",
            "installHint": "The command `tower` is missing: install Tower's package, or use a kubeconfig that "
            "`tower kubeconfig` made without --exec.",
        }
    }


def build_kubeconfig(
    *,
    cluster: ClusterName,
    zone: str,
    public_address: HostPort,
    ca_pem: bytes,
    user: Mapping[str, Any],
    face: Face = Face.SEALED,
) -> str:
    """Build the YAML text; the same arguments give the same text.

    Cluster, context and user all have the cluster's name, so that the files of several clusters
    can be merged, by KUBECONFIG=a:b or `merge_kubeconfigs`.

    Args:
        user: Of `client_certificate`, and then the text contains the private key; or of
            `credential_plugin`.
    """
    name = tls_server_name(face, cluster, zone)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": str(cluster),
                "cluster": {
                    "server": cluster_url(public_address, cluster),
                    **({} if name is None else {"tls-server-name": name}),
                    "certificate-authority-data": _base64(ca_pem),
                },
            }
        ],
        "users": [
            {
                "name": str(cluster),
                "user": dict(user),
            }
        ],
        "contexts": [
            {
                "name": str(cluster),
                "context": {"cluster": str(cluster), "user": str(cluster)},
            }
        ],
        "current-context": str(cluster),
    }
    return _text(document)


def merge_kubeconfigs(texts: Sequence[str]) -> str:
    """Put texts of `build_kubeconfig` into one, a context each; the first is the current one."""
    documents = [yaml.safe_load(text) for text in texts]
    merged = documents[0]
    for document in documents[1:]:
        for section in ("clusters", "users", "contexts"):
            merged[section] += document[section]
    return _text(merged)


def _check_name(kind: str, name: str) -> None:
    if name.startswith("system:"):
        raise ValueError(
            f"The {kind} {name!r} begins with system:, which belongs to Kubernetes itself, and agents refuse it: "
            f"use a {kind} of your own and bind it in the member (RBAC)."
        )
    try:
        parse_principal(name)
    except ValueError as error:
        raise ValueError(f"The {kind} is refused: {error}.") from error


def _text(document: Any) -> str:
    # An endless width: a folded key would be legal YAML, and hard to paste.
    return yaml.safe_dump(document, sort_keys=False, width=float("inf"))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
