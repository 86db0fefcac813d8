"""How a joined agent proves itself in the upgrade of a tunnel.

The outer TLS may end at an ingress or load balancer, which hands on no client certificate.
So the agent signs a short-lived statement with the key of its certificate and sends it as a
bearer token. It can be used once, only here, and for a minute; what is inside the tunnel is
protected by TLS of its own, so a thief in between who is faster gains a tunnel that he
cannot speak in.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.chains import check_issuer, check_validity
from certs.keys import require_p256, spki_pin
from certs.names import (
    AgentRole,
    ClusterName,
    RoleError,
    ServerRole,
    parse_zone,
    role_of,
    role_uri,
)
from certs.signatures import (
    CLOCK_LEEWAY,
    BadAssertion,
    BadStatement,
    check_clock,
    is_timestamp,
    open_statement,
    read_signers,
    sign_statement,
)

__all__ = [
    "ASSERTION_LIFETIME",
    "AgentIdentity",
    "AssertionVerifier",
    "BadAssertion",
    "assertion_audience",
    "make_assertion",
    "renewal_audience",
]

# design.md, 3. Longer than any dial takes; short enough that we can remember all of them.
ASSERTION_LIFETIME = timedelta(seconds=60)

_KIND = "tower-assertion+jwt"

# A reconnecting agent dials up to every half second for a minute (design.md, 4.8), and we
# remember for two minutes; four times that is an agent gone mad or stolen.
MAX_REMEMBERED_PER_AGENT = 1_000
# Ten thousand agents returning together, each with ten tries. About 25 MB.
MAX_REMEMBERED = 100_000
# 128 random bits in hex have 32 characters.
MIN_JTI_CHARACTERS, MAX_JTI_CHARACTERS = 16, 64


@dataclass(frozen=True, kw_only=True)
class AgentIdentity:
    """Who dialled, as its certificate says. Whether it is still welcome, the store knows."""

    cluster: ClusterName
    serial: int
    public_key_pin: str
    not_after: datetime


def assertion_audience(zone: str) -> str:
    """Whom an agent of this zone addresses its assertions to."""
    return role_uri(ServerRole(zone=zone))


def renewal_audience(zone: str) -> str:
    """The same for assertions that renew a certificate: neither kind is good for the other."""
    return f"{assertion_audience(zone)}#renew"


def make_assertion(
    key: ec.EllipticCurvePrivateKey,
    chain: Sequence[x509.Certificate],
    audience: str,
    now: datetime,
    jti: str,
) -> str:
    """Sign one assertion.

    `chain` begins with the certificate of `key`; `jti` is new and random for each,
    16 to 64 characters.
    """
    issued = int(now.timestamp())
    claims = {
        "aud": audience,
        "iat": issued,
        "exp": issued + int(ASSERTION_LIFETIME.total_seconds()),
        "jti": jti,
    }
    return sign_statement(key, chain[:1], kind=_KIND, claims=claims)


class AssertionVerifier:
    """Accepts each assertion of each agent of one zone once. Belongs to one event loop."""

    def __init__(
        self,
        ca_certs: Sequence[x509.Certificate],
        zone: str,
        *,
        audience: str | None = None,
        late: timedelta = timedelta(0),
    ) -> None:
        """Build a verifier.

        Args:
            audience: What the assertions are good for; None: for a tunnel.
            late: How long after its end a certificate is still taken.
        """
        # More than one while a CA is being replaced.
        self._authorities = tuple(ca_certs)
        self._zone = parse_zone(zone)
        self._audience = audience or assertion_audience(self._zone)
        self._late = late
        self._used = _UsedAssertions()

    def verify(self, token: str, now: datetime) -> AgentIdentity:
        """Check an assertion and use it up.

        Raises:
            BadAssertion: Says which check failed. Nothing but a good assertion is remembered,
                so strangers cannot fill our memory.
        """
        try:
            return self._verify(token, now)
        except BadAssertion:
            raise
        except BadStatement as error:
            raise BadAssertion(error.reason, error.detail) from error

    def _verify(self, token: str, now: datetime) -> AgentIdentity:
        # From cheap to dear, and nothing is read from a statement before it is proven. Dates
        # come after the signature: then a wrong clock is called that, and not "expired".
        signer = read_signers(token, kind=_KIND)[0]
        role = self._role_of(signer)
        claims = open_statement(token, signer)
        if claims.get("aud") != self._audience:
            raise BadAssertion(
                "audience",
                "the assertion is meant for another zone's server than this one, or for another purpose",
            )
        self._check_times(claims, now)
        try:
            # The clock's word on a beginning counts as it is.
            end = signer.not_valid_after_utc
            check_validity(signer, min(now, end) if now <= end + self._late else now)
        except ValueError as error:
            raise BadAssertion(
                "expired", f"{error}; join the agent again with a new join string"
            ) from error
        self._use_up(claims, signer.serial_number, now)
        return AgentIdentity(
            cluster=role.cluster,
            serial=signer.serial_number,
            public_key_pin=spki_pin(require_p256(signer.public_key())),
            not_after=signer.not_valid_after_utc,
        )

    def _role_of(self, signer: x509.Certificate) -> AgentRole:
        try:
            check_issuer(signer, self._authorities)
        except ValueError as error:
            raise BadAssertion(
                "issuer",
                f"{error}; join the agent again if this server's CA was made anew",
            ) from error
        try:
            role = role_of(signer)
        except RoleError as error:
            raise BadAssertion("role", str(error)) from error
        if not isinstance(role, AgentRole) or role.zone != self._zone:
            raise BadAssertion(
                "role",
                f"the certificate is for {role_uri(role)}, not for an agent of this zone",
            )
        return role

    def _check_times(self, claims: dict[str, Any], now: datetime) -> None:
        issued, expires = claims.get("iat"), claims.get("exp")
        if not is_timestamp(issued) or not is_timestamp(expires):
            raise BadAssertion("malformed", "the assertion's iat or exp is no time")
        if not 0 < expires - issued <= ASSERTION_LIFETIME.total_seconds():
            raise BadAssertion(
                "lifetime",
                f"the assertion is good for {expires - issued} s; the limit is "
                f"{ASSERTION_LIFETIME.total_seconds():.0f} s",
            )
        # This implies that it is not expired by more than clocks may differ.
        claimed = datetime.fromtimestamp(issued, tz=UTC)
        check_clock(claimed, now, whose="the agent", refusal=BadAssertion)

    def _use_up(self, claims: dict[str, Any], serial: int, now: datetime) -> None:
        jti = claims.get("jti")
        if (
            not isinstance(jti, str)
            or not MIN_JTI_CHARACTERS <= len(jti) <= MAX_JTI_CHARACTERS
        ):
            raise BadAssertion(
                "malformed",
                f"the assertion has no jti of {MIN_JTI_CHARACTERS} to {MAX_JTI_CHARACTERS} "
                "characters",
            )
        # After that check_clock refuses it anyway.
        forget_at = float(claims["iat"]) + CLOCK_LEEWAY.total_seconds()
        self._used.add(serial, jti, forget_at=forget_at, now=now.timestamp())


class _UsedAssertions:
    """What was used and could still be shown again. Times are seconds since 1970."""

    def __init__(self) -> None:
        # By certificate serial: the jtis that it used.
        self._by_agent: dict[int, set[str]] = {}
        # (when to forget, serial, jti), soonest first: the same entries as in _by_agent.
        self._by_time: list[tuple[float, int, str]] = []

    def add(self, serial: int, jti: str, *, forget_at: float, now: float) -> None:
        self._forget_old(now)
        used = self._by_agent.get(serial, set())
        if jti in used:
            raise BadAssertion(
                "replayed", "the assertion was used before; make a new one"
            )
        if (
            len(used) >= MAX_REMEMBERED_PER_AGENT
            or len(self._by_time) >= MAX_REMEMBERED
        ):
            # To forget one early would let it be used again.
            raise BadAssertion(
                "busy",
                "too many assertions within two minutes; wait a minute and dial again",
            )
        used.add(jti)
        self._by_agent[serial] = used
        heapq.heappush(self._by_time, (forget_at, serial, jti))

    def _forget_old(self, now: float) -> None:
        while self._by_time and self._by_time[0][0] < now:
            _, serial, jti = heapq.heappop(self._by_time)
            used = self._by_agent[serial]
            used.discard(jti)
            if not used:
                del self._by_agent[serial]
