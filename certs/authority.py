"""The certificate authority of a zone: one key, made once, that signs everything.

It lives in a directory as `ca.key` (0600) and `ca.crt`, or wherever the caller keeps the two
(`create`, `from_pem`). A new one is made only when neither is there. Whatever else is found (one
without the other, a file cut short, a key that does not fit) is an error and never a reason to
make a new CA: every member pins the old one, and would have to join again.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs import profiles
from certs.chains import check_validity, is_authority, parse_certificate, pem, spoken
from certs.keys import (
    PrivateBytes,
    new_key,
    parse_private_key,
    private_directory,
    private_pem,
    read_private,
    read_public,
    require_p256,
    spki_pin,
    write_private,
    write_public,
)
from certs.names import (
    MAX_GROUPS,
    AgentRole,
    ClusterName,
    Role,
    ServerRole,
    UserRole,
    host_name,
    parse_host,
    parse_principal,
    parse_zone,
)

__all__ = [
    "AGENT_LIFETIME",
    "AUTHORITY_LIFETIME",
    "BACKDATING",
    "DEFAULT_USER_LIFETIME",
    "MAX_USER_BYTES",
    "MAX_USER_LIFETIME",
    "SERVER_LIFETIME",
    "Authority",
]

# design.md, 3: lifetimes.
AUTHORITY_LIFETIME = timedelta(days=3650)
AGENT_LIFETIME = timedelta(days=30)
SERVER_LIFETIME = timedelta(days=90)
DEFAULT_USER_LIFETIME = timedelta(hours=8)
# Nothing but its end takes a user certificate out of use for certain (the deny-list reaches
# connected agents only), so no one should outlive an agent's.
MAX_USER_LIFETIME = AGENT_LIFETIME

# Certificates begin a little before they are made: the clock of who reads one may be behind,
# and a new member should not fail its first handshake for that.
BACKDATING = timedelta(minutes=5)

# RFC 5280's bound for a common name; TLS libraries are free to refuse longer ones.
MAX_USER_BYTES = 64
# An empty CSR on P-256 has about 200 bytes.
MAX_CSR_BYTES = 4096

KEY_FILE = "ca.key"
CERTIFICATE_FILE = "ca.crt"


class Authority:
    """The CA. Make it with `open_or_create`; it keeps its key to itself."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, zone: str
    ) -> None:
        # Signs; there is no way to read it back from here.
        self._key = key
        self.certificate = certificate
        self.zone = zone
        # What join strings carry; it stays when the certificate is renewed for the same key.
        self.pin = spki_pin(key.public_key())
        self.pem = pem(certificate)

    def __repr__(self) -> str:
        return f"Authority(zone={self.zone!r}, pin={self.pin!r})"

    @classmethod
    def open_or_create(cls, directory: Path, zone: str, now: datetime) -> "Authority":
        """Open the CA in `directory`, or make it there when the directory holds none.

        Raises:
            ValueError: If what is there is incomplete, damaged, open to other accounts, of
                another zone or out of its dates; says which file, and what to do.
            OSError: If the files cannot be read or written.
        """
        zone = parse_zone(zone)
        private_directory(directory)
        missing = [
            name
            for name in (KEY_FILE, CERTIFICATE_FILE)
            # A dangling link is something that is there, too.
            if not (directory / name).exists() and not (directory / name).is_symlink()
        ]
        if len(missing) == 2:
            return cls._create(directory, zone, now)
        if missing:
            raise _damage(
                str(directory),
                (KEY_FILE, CERTIFICATE_FILE),
                f"{missing[0]} is missing",
            )
        return cls._open(directory, zone, now)

    @classmethod
    def create(cls, zone: str, now: datetime) -> tuple["Authority", PrivateBytes]:
        """Make a new CA; the caller keeps its key (PEM) and its certificate (`pem`).

        Raises:
            ValueError: If the zone is none.
        """
        zone = parse_zone(zone)
        key = new_key()
        now = _whole_seconds(now)
        builder = profiles.authority(zone, key.public_key())
        builder = builder.not_valid_before(now - BACKDATING).not_valid_after(
            now + AUTHORITY_LIFETIME
        )
        return cls(key, builder.sign(key, hashes.SHA256()), zone), private_pem(key)

    @classmethod
    def from_pem(
        cls,
        key_pem: bytes,
        certificate_pem: bytes,
        zone: str,
        now: datetime,
        *,
        place: str,
        names: tuple[str, str] = (KEY_FILE, CERTIFICATE_FILE),
    ) -> "Authority":
        """Open the CA that these two are.

        Args:
            place: Where they were, for errors: "/var/lib/tower/ca", "the Secret tower/tower-ca".
            names: What key and certificate are called there.

        Raises:
            ValueError: If they are damaged, of another zone or out of their dates.
        """
        zone = parse_zone(zone)
        key_name, certificate_name = names
        try:
            key = parse_private_key(key_pem)
        except ValueError as error:
            raise _damage(place, names, f"{key_name}: {error}") from error
        try:
            certificate = parse_certificate(certificate_pem)
        except ValueError as error:
            raise _damage(place, names, f"{certificate_name}: {error}") from error
        if not is_authority(certificate):
            raise _damage(
                place, names, f"{certificate_name} is not the certificate of a CA"
            )
        if certificate.public_key() != key.public_key():
            raise _damage(
                place,
                names,
                f"{key_name} and {certificate_name} do not belong together",
            )
        _check_zone(certificate, zone, place)
        try:
            check_validity(certificate, now)
        except ValueError as error:
            raise ValueError(f"the CA in {place} cannot be used: {error}") from error
        return cls(key, certificate, zone)

    @classmethod
    def _create(cls, directory: Path, zone: str, now: datetime) -> "Authority":
        authority, key_pem = cls.create(zone, now)
        try:
            write_private(directory / KEY_FILE, key_pem, replace=False)
        except FileExistsError as error:
            raise _taken(directory) from error
        try:
            # The certificate comes last: it says that the CA is complete.
            write_public(directory / CERTIFICATE_FILE, authority.pem, replace=False)
        except BaseException as error:
            # Nobody has seen this key; left alone it would look like a damaged CA.
            (directory / KEY_FILE).unlink()
            if isinstance(error, FileExistsError):
                raise _taken(directory) from error
            raise
        return authority

    @classmethod
    def _open(cls, directory: Path, zone: str, now: datetime) -> "Authority":
        # Files open to others are told apart from damage: their error has its own remedy.
        key_pem = read_private(directory / KEY_FILE)
        certificate_pem = read_public(directory / CERTIFICATE_FILE)
        return cls.from_pem(key_pem, certificate_pem, zone, now, place=str(directory))

    def issue_agent(
        self, csr_der: bytes, cluster: ClusterName, now: datetime
    ) -> x509.Certificate:
        """Sign an agent's key. Of the CSR only the key counts: we decide what it may say.

        Raises:
            ValueError: If the CSR is damaged, not signed by its own key, or not on P-256.
        """
        return self._issue(
            _key_of_request(csr_der),
            AgentRole(zone=self.zone, cluster=cluster),
            # CN is for people who look at it; no verifier of ours reads it.
            subject=[(NameOID.COMMON_NAME, cluster)],
            hosts=[host_name(cluster, self.zone)],
            lifetime=AGENT_LIFETIME,
            now=now,
        )

    def issue_server(
        self,
        public_key: ec.EllipticCurvePublicKey,
        host_names: Sequence[str],
        now: datetime,
    ) -> x509.Certificate:
        """Sign a server's key for the names and addresses that agents and users dial.

        Raises:
            ValueError: If there is no name, a name is none, or it lies in the zone: such
                names belong to the agents.
        """
        hosts = list(dict.fromkeys(map(parse_host, host_names)))
        if not hosts:
            raise ValueError(
                "a server certificate needs at least one host name or address"
            )
        for host in hosts:
            if f".{host}".endswith(f".{self.zone}"):
                raise ValueError(
                    f"{host} lies in the zone {self.zone}, where names are those of clusters: "
                    "give the server an address outside of it"
                )
        return self._issue(
            require_p256(public_key),
            ServerRole(zone=self.zone),
            subject=[(NameOID.COMMON_NAME, "tower-server")],
            hosts=hosts,
            lifetime=SERVER_LIFETIME,
            now=now,
        )

    def issue_user(
        self,
        public_key: ec.EllipticCurvePublicKey,
        user: str,
        groups: Sequence[str],
        clusters: Iterable[ClusterName] | None,
        ttl: timedelta,
        now: datetime,
    ) -> x509.Certificate:
        """Sign a user's key: for one Kubernetes user with its groups, at these clusters.

        `clusters=None` means all clusters, those of the future too.

        Raises:
            ValueError: If a name is one that agents refuse, or the time is too long.
        """
        if len(parse_principal(user).encode()) > MAX_USER_BYTES:
            raise ValueError(f"the user's name is longer than {MAX_USER_BYTES} bytes")
        unique_groups = list(dict.fromkeys(map(parse_principal, groups)))
        if len(unique_groups) > MAX_GROUPS:
            raise ValueError(
                f"a certificate can name {MAX_GROUPS} groups; these are more"
            )
        if not timedelta(minutes=1) <= ttl <= MAX_USER_LIFETIME:
            raise ValueError(
                f"a user certificate lives between 1 min and {spoken(MAX_USER_LIFETIME)}, "
                f"not {spoken(ttl)}"
            )
        limits = None if clusters is None else frozenset(clusters)
        organizations = [(NameOID.ORGANIZATION_NAME, group) for group in unique_groups]
        return self._issue(
            require_p256(public_key),
            UserRole(zone=self.zone, clusters=limits),
            subject=[(NameOID.COMMON_NAME, user), *organizations],
            hosts=[],
            lifetime=ttl,
            now=now,
        )

    def _issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        role: Role,
        *,
        subject: Sequence[tuple[x509.ObjectIdentifier, str]],
        hosts: Sequence[str],
        lifetime: timedelta,
        now: datetime,
    ) -> x509.Certificate:
        now = _whole_seconds(now)
        check_validity(self.certificate, now)
        # Nothing outlives the CA: it would fail in ways that nobody expects.
        end = min(now + lifetime, self.certificate.not_valid_after_utc)
        builder = profiles.leaf(
            role,
            subject=subject,
            hosts=hosts,
            public_key=public_key,
            authority=self.certificate,
        )
        builder = builder.not_valid_before(now - BACKDATING).not_valid_after(end)
        return builder.sign(self._key, hashes.SHA256())


def _key_of_request(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    if len(csr_der) > MAX_CSR_BYTES:
        raise ValueError(
            f"the certificate request is larger than {MAX_CSR_BYTES} bytes"
        )
    try:
        request = x509.load_der_x509_csr(csr_der)
        # Whoever asks must hold the key, else it could have somebody else's key certified.
        proven = request.is_signature_valid
        public_key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("the certificate request is damaged") from error
    if not proven:
        raise ValueError("the certificate request is not signed by the key in it")
    return require_p256(public_key)


def _check_zone(certificate: x509.Certificate, zone: str, place: str) -> None:
    theirs = profiles.zone_of_authority(certificate)
    if theirs != zone:
        raise ValueError(
            f"the CA in {place} was made for {theirs or 'no zone'}, not for the zone {zone}: "
            "start with the zone that it was made for, or with another, empty directory or Secret"
        )


def _taken(directory: Path) -> ValueError:
    return ValueError(
        f"another process made a CA in {directory} at the same moment: let only one server "
        "use the directory, and start again"
    )


def _damage(place: str, names: tuple[str, str], what: str) -> ValueError:
    return ValueError(
        f"the CA in {place} is not complete: {what}. Restore both {names[0]} and "
        f"{names[1]} from a backup. Only if no member ever joined, remove both, and "
        "the next start makes a new CA"
    )


def _whole_seconds(now: datetime) -> datetime:
    """Certificates know no fractions, and naive times would be taken for UTC unasked."""
    if now.tzinfo is None:
        raise ValueError("a time without a time zone was passed as `now`")
    return now.astimezone(UTC).replace(microsecond=0)
