"""Makes a cluster's access for an identity: a key, a certificate of our CA, the kubeconfig around them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from certs import chains, keys
from certs.authority import Authority
from certs.names import ClusterName
from shared.settings import HostPort
from tower_server.kubeconfig import (
    Face,
    KubeconfigUser,
    build_kubeconfig,
    client_certificate,
    cluster_url,
    credential_plugin,
    tls_server_name,
)
from tower_server.publication import ClusterAccess

__all__ = ["AccessIssuer", "IssuedAccess"]


@dataclass(frozen=True, kw_only=True)
class IssuedAccess:
    """An access, and what a log may say of it."""

    access: ClusterAccess
    identity: KubeconfigUser
    serial: int


class AccessIssuer:
    """Signs for whoever is allowed to ask; who that is, others decide."""

    def __init__(
        self,
        *,
        authority: Authority,
        public_address: HostPort,
        clock: Callable[[], datetime],
    ) -> None:
        self._authority = authority
        self._public_address = public_address
        self._clock = clock

    def issue(
        self,
        cluster: ClusterName,
        identity: KubeconfigUser,
        ttl: timedelta,
        *,
        face: Face = Face.SEALED,
        version: str | None = None,
    ) -> IssuedAccess:
        """Make a new key and a certificate that is good for one cluster and for `ttl`.

        Args:
            version: The member's version of Kubernetes, where it is known.
        """
        key = keys.new_key()
        certificate = self._authority.issue_user(
            key.public_key(),
            user=identity.user,
            groups=identity.groups,
            clusters=frozenset({cluster}),
            ttl=ttl,
            now=self._clock(),
        )
        certificate_pem, key_pem = chains.pem(certificate), keys.private_pem(key)
        access = ClusterAccess(
            cluster=cluster,
            url=cluster_url(self._public_address, cluster),
            tls_server_name=tls_server_name(face, cluster, self._authority.zone),
            ca_pem=self._authority.pem,
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            not_after=certificate.not_valid_after_utc,
            kubeconfig=self._kubeconfig(
                cluster, face, client_certificate(certificate_pem, key_pem)
            ),
            version=version,
        )
        return IssuedAccess(
            access=access, identity=identity, serial=certificate.serial_number
        )

    def plugin_kubeconfig(
        self, cluster: ClusterName, face: Face, arguments: Sequence[str]
    ) -> str:
        """A kubeconfig without a secret: its user runs `tower` with these arguments and the name."""
        return self._kubeconfig(cluster, face, credential_plugin([*arguments, cluster]))

    def _kubeconfig(
        self, cluster: ClusterName, face: Face, user: Mapping[str, Any]
    ) -> str:
        return build_kubeconfig(
            cluster=cluster,
            zone=self._authority.zone,
            public_address=self._public_address,
            ca_pem=self._authority.pem,
            user=user,
            face=face,
        )
