"""Names, and what a certificate says about its holder.

Everything that another party could choose is parsed here, once and strictly: a name or a
role has one spelling, and what is spelled otherwise is refused instead of repaired. Two
readers of one certificate can then never come to two opinions about it.
"""

import contextlib
import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import NewType

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "DEFAULT_ZONE",
    "MAX_GROUPS",
    "MAX_PRINCIPAL_BYTES",
    "UNREADABLE_EXTENSIONS",
    "AdminRole",
    "AgentRole",
    "ClusterName",
    "Role",
    "RoleError",
    "ServerRole",
    "UserIdentity",
    "UserRole",
    "cluster_of_host",
    "host_name",
    "key_usages",
    "parse_cluster_name",
    "parse_host",
    "parse_principal",
    "parse_role",
    "parse_zone",
    "require_role",
    "role_of",
    "role_uri",
    "user_identity",
]

DEFAULT_ZONE = "clusters.tower.internal"

# A host name has 253 bytes (RFC 1035); a cluster's label and its dot take up to 64.
MAX_ZONE_BYTES = 253 - 64
# Room for about 120 clusters with the longest names. A certificate for more of them should
# be for all: each byte is sent in each handshake.
MAX_ROLE_URI_BYTES = 8 * 1024
# design.md, 2: longer names refuse the certificate. They end up in a header and in logs.
MAX_PRINCIPAL_BYTES = 256
# Each becomes an Impersonate-Group line; 128 of the longest fill half of a 64 KiB head.
MAX_GROUPS = 128
# How much of somebody else's text an error repeats.
MAX_QUOTED_CHARACTERS = 80

# What `cryptography` raises for extensions that are there and cannot be read.
UNREADABLE_EXTENSIONS = (
    ValueError,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

ClusterName = NewType("ClusterName", str)

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
# Hosts are other people's: container networks do have names with underscores.
_HOST_LABEL = re.compile(r"[a-z0-9_](?:[-a-z0-9_]{0,61}[a-z0-9_])?")
_ROLE_URI = re.compile(
    r"tower://(?P<zone>[^/?#]+)/"
    r"(?:(?P<bare>server|admin)|agent/(?P<cluster>[^/?#]+)|user\?clusters=(?P<clusters>[^/?#&]+))"
)


class RoleError(ValueError):
    """The certificate does not say, or must not say, what it would have to for this purpose."""


def parse_cluster_name(text: str) -> ClusterName:
    """Check that `text` can name a cluster: a DNS label in lower case (RFC 1123).

    Raises:
        ValueError: One sentence that says what a name may look like.
    """
    if not _LABEL.fullmatch(text):
        raise ValueError(
            f"{_quoted(text)} cannot name a cluster: use 1 to 63 lower-case letters, digits "
            "and '-', with a letter or digit at both ends"
        )
    return ClusterName(text)


def parse_zone(text: str) -> str:
    """Check that `text` can be the zone: the DNS suffix under which clusters have names.

    Raises:
        ValueError: One sentence that says what a zone may look like.
    """
    labels = text.split(".")
    # With a number at the end, `10.0.0.<zone>` could be an IP address.
    good = all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
    if not good or len(text) > MAX_ZONE_BYTES:
        raise ValueError(
            f"{_quoted(text)} cannot be the zone: use a DNS name in lower case of at most "
            f"{MAX_ZONE_BYTES} characters, like {DEFAULT_ZONE}"
        )
    return text


def parse_host(text: str) -> str:
    """Check a DNS name or an IP address; returns its one spelling (IPv6 without brackets).

    Raises:
        ValueError: One sentence that says what a host may look like.
    """
    # A scope (`%eth0`) means something on one machine only.
    if "%" not in text:
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(text))
    host = text.lower()
    labels = host.split(".")
    if (
        not all(map(_HOST_LABEL.fullmatch, labels))
        or labels[-1].isdigit()
        or len(host) > 253
    ):
        raise ValueError(
            f"{_quoted(text)} is neither a DNS name nor an IP address; names with other than "
            "ASCII letters are written as xn--…, IPv6 addresses without a scope"
        )
    return host


def host_name(cluster: ClusterName, zone: str) -> str:
    """The DNS name of a cluster: the server name in TLS, and in the agent's certificate."""
    return f"{cluster}.{zone}"


def cluster_of_host(host: str, zone: str) -> ClusterName | None:
    """Which cluster a TLS server name means; None when it lies outside of the zone.

    Raises:
        ValueError: If it lies in the zone and yet can name no cluster.
    """
    # RFC 6066, 3: names are compared without case. The dot at the end is not sent by rights.
    host = host.lower().removesuffix(".")
    if host == zone or not host.endswith(f".{zone}"):
        return None
    return parse_cluster_name(host.removesuffix(f".{zone}"))


def parse_principal(text: str) -> str:
    """Check the name of a user or group (design.md, 2: identity rules).

    It becomes a header's value and a line in other people's logs, so besides control
    characters we refuse invisible ones, which let one name look like another.

    Raises:
        ValueError: One sentence that says what is wrong with it.
    """
    if not text:
        # The apiserver takes an empty Impersonate-User as the agent itself.
        raise ValueError("the name of a user or group is empty")
    if any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text):
        raise ValueError(
            f"{_quoted(text)} cannot name a user or group: it has a control character or an "
            "invisible one in it"
        )
    if text != text.strip():
        raise ValueError(
            f"{_quoted(text)} cannot name a user or group: it begins or ends with a blank"
        )
    if len(text.encode()) > MAX_PRINCIPAL_BYTES:
        raise ValueError(
            f"{_quoted(text)} cannot name a user or group: it is longer than "
            f"{MAX_PRINCIPAL_BYTES} bytes"
        )
    return text


@dataclass(frozen=True, kw_only=True)
class AgentRole:
    """Speaks for one member cluster."""

    zone: str
    cluster: ClusterName


@dataclass(frozen=True, kw_only=True)
class UserRole:
    """Uses clusters: those named, or all when `clusters` is None."""

    zone: str
    clusters: frozenset[ClusterName] | None


@dataclass(frozen=True, kw_only=True)
class ServerRole:
    """Is a server of this zone."""

    zone: str


@dataclass(frozen=True, kw_only=True)
class AdminRole:
    """Administers the server."""

    zone: str


Role = AgentRole | UserRole | ServerRole | AdminRole


def key_usages(role: Role) -> frozenset[x509.ObjectIdentifier]:
    """The extended key usages that a certificate of this role has: these and no others."""
    match role:
        case AgentRole() | ServerRole():
            # Both accept connections and open them: the agent ends the sealed face and dials
            # the control stream; servers take that call and dial each other.
            return frozenset(
                {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
            )
        case UserRole() | AdminRole():
            return frozenset({ExtendedKeyUsageOID.CLIENT_AUTH})


def role_uri(role: Role) -> str:
    """The one spelling of a role.

    Raises:
        ValueError: If a name in it is none, or it permits no cluster or too many.
    """
    root = f"tower://{parse_zone(role.zone)}"
    match role:
        case ServerRole():
            return f"{root}/server"
        case AdminRole():
            return f"{root}/admin"
        case AgentRole(cluster=cluster):
            return f"{root}/agent/{parse_cluster_name(cluster)}"
        case UserRole(clusters=None):
            return f"{root}/user?clusters=*"
        case UserRole(clusters=clusters):
            if not clusters:
                raise ValueError(
                    "a user certificate needs at least one cluster, or all"
                )
            uri = f"{root}/user?clusters=" + ",".join(
                sorted(map(parse_cluster_name, clusters))
            )
            if len(uri) > MAX_ROLE_URI_BYTES:
                raise ValueError(
                    f"{len(clusters)} clusters do not fit into one certificate; make it for "
                    "fewer of them, or for all"
                )
            return uri


def parse_role(uri: str) -> Role:
    """Read a role from its URI; the inverse of `role_uri`.

    Raises:
        RoleError: If `uri` is no role, or one in another spelling than `role_uri`'s.
    """
    match = _ROLE_URI.fullmatch(uri) if len(uri) <= MAX_ROLE_URI_BYTES else None
    if match is None:
        raise RoleError(f"{_quoted(uri)} is not a role of Tower")
    try:
        role = _role_from(match)
        canonical = role_uri(role)
    except ValueError as error:
        raise RoleError(f"{_quoted(uri)} is not a role of Tower: {error}") from error
    if canonical != uri:
        raise RoleError(f"{_quoted(uri)} is not how Tower writes {_quoted(canonical)}")
    return role


def _role_from(match: re.Match[str]) -> Role:
    zone = match["zone"]
    if match["cluster"] is not None:
        return AgentRole(zone=zone, cluster=parse_cluster_name(match["cluster"]))
    if match["clusters"] == "*":
        return UserRole(zone=zone, clusters=None)
    if match["clusters"] is not None:
        names = frozenset(map(parse_cluster_name, match["clusters"].split(",")))
        return UserRole(zone=zone, clusters=names)
    return ServerRole(zone=zone) if match["bare"] == "server" else AdminRole(zone=zone)


def role_of(certificate: x509.Certificate) -> Role:
    """The role that a certificate gives its holder.

    Says nothing about who signed it: TLS, or `chains.check_issuer`, does that first.

    Raises:
        RoleError: If it has no role or more than one, or usages that do not fit.
    """
    try:
        extensions = certificate.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        raise RoleError(
            "the certificate has no role: Tower did not issue it"
        ) from error
    except UNREADABLE_EXTENSIONS as error:
        raise RoleError("the certificate's extensions cannot be read") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise RoleError(f"the certificate has {len(uris)} URIs; a role is exactly one")
    role = parse_role(uris[0])
    if constraints.ca:
        raise RoleError("the certificate is a CA's; a CA acts in no role itself")
    if frozenset(usages) != key_usages(role):
        raise RoleError(f"the key usages do not fit the role {_quoted(uris[0])}")
    return role


def require_role(certificate: x509.Certificate, expected: Role) -> None:
    """Demand exactly this role.

    Raises:
        RoleError: If the certificate has another one, or none.
    """
    role = role_of(certificate)
    if role != expected:
        raise RoleError(
            f"the certificate is for {role_uri(role)}; here {role_uri(expected)} is needed"
        )


@dataclass(frozen=True, kw_only=True)
class UserIdentity:
    """Who a user certificate speaks for, where, and until when."""

    user: str
    groups: tuple[str, ...]
    clusters: frozenset[ClusterName] | None  # None: all of them
    serial: int
    not_after: datetime

    def may_use(self, cluster: ClusterName) -> bool:
        """True when the certificate is good for this cluster."""
        return self.clusters is None or cluster in self.clusters


def user_identity(certificate: x509.Certificate, zone: str) -> UserIdentity:
    """Read a user certificate as Kubernetes does: CN is the user, each O a group.

    The caller still checks `may_use` for its cluster and, at each request, `not_after`.

    Raises:
        RoleError: If it is no user certificate of this zone, or a name in it is bad: then
            the whole certificate is refused, for a name left out could be the one that
            somebody's deny rule is about.
    """
    role = role_of(certificate)
    if not isinstance(role, UserRole):
        raise RoleError(
            f"the certificate is for {role_uri(role)}; a user certificate is needed: use a "
            "kubeconfig that `tower kubeconfig` wrote"
        )
    if role.zone != zone:
        raise RoleError(f"the certificate is for zone {role.zone}; this is zone {zone}")
    users = _subject_values(certificate, NameOID.COMMON_NAME)
    groups = _subject_values(certificate, NameOID.ORGANIZATION_NAME)
    if len(users) != 1:
        raise RoleError(f"{len(users)} users in the certificate; exactly one is needed")
    if len(groups) > MAX_GROUPS:
        raise RoleError(f"{len(groups)} groups in a certificate; at most {MAX_GROUPS}")
    return UserIdentity(
        user=users[0],
        groups=groups,
        clusters=role.clusters,
        serial=certificate.serial_number,
        not_after=certificate.not_valid_after_utc,
    )


def _subject_values(
    certificate: x509.Certificate, kind: x509.ObjectIdentifier
) -> tuple[str, ...]:
    try:
        values = [a.value for a in certificate.subject.get_attributes_for_oid(kind)]
        # bytes come from string types that nobody uses for names.
        return tuple(parse_principal(v if isinstance(v, str) else "") for v in values)
    except ValueError as error:
        raise RoleError(f"the certificate is refused: {error}") from error


def _quoted(text: str) -> str:
    """Somebody else's text as an error shows it: short, and harmless to a terminal."""
    if len(text) > MAX_QUOTED_CHARACTERS:
        text = text[:MAX_QUOTED_CHARACTERS] + "…"
    return ascii(text) if not text.isprintable() else repr(text)
