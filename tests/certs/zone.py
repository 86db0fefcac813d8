"""A zone for tests: its CA, and keys with certificates in each role, at a time of our own."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import Authority
from certs.chains import pem
from certs.keys import PrivateBytes, certificate_request, new_key, private_pem
from certs.names import ClusterName, parse_cluster_name

# OpenSSL compares with the real clock, so handshakes need certificates of today.
NOW = datetime.now(UTC).replace(microsecond=0)
ZONE = "clusters.tower.internal"
ALPHA = parse_cluster_name("alpha")
BETA = parse_cluster_name("beta")


@dataclass(frozen=True)
class Holder:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def chain_pem(self) -> bytes:
        return pem(self.certificate)

    @property
    def key_pem(self) -> PrivateBytes:
        return private_pem(self.key)


class Zone:
    """A CA and whom it certifies."""

    def __init__(self, directory: Path, zone: str = ZONE, now: datetime = NOW) -> None:
        self.authority = Authority.open_or_create(directory, zone, now)
        self.zone = zone
        self.ca = self.authority.certificate
        self.ca_pem = self.authority.pem

    def agent(self, cluster: ClusterName = ALPHA, now: datetime = NOW) -> Holder:
        key = new_key()
        request = certificate_request(key)
        return Holder(key, self.authority.issue_agent(request, cluster, now))

    def server(self, *hosts: str, now: datetime = NOW) -> Holder:
        key = new_key()
        names = hosts or ("localhost", "127.0.0.1")
        return Holder(key, self.authority.issue_server(key.public_key(), names, now))

    def user(
        self,
        user: str = "tower:admin",
        groups: tuple[str, ...] = ("tower:cluster-admins",),
        clusters: tuple[ClusterName, ...] | None = (ALPHA,),
        ttl: timedelta = timedelta(hours=8),
        now: datetime = NOW,
    ) -> Holder:
        key = new_key()
        certificate = self.authority.issue_user(
            key.public_key(), user, groups, clusters, ttl, now
        )
        return Holder(key, certificate)
