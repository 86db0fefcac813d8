"""A signed statement that brings its signer's certificate along (JWS, ES256, x5c).

Assertions and join answers are both of this kind. Reading one goes in the order of the
functions here: `read_signers` takes out who claims to have signed, the caller decides
whether it trusts them, and only `open_statement`, with the key of whom it trusts, gives out
what was said. We use PyJWT for the envelope and check claims ourselves: it would compare
times with its own clock, and leaves open what we want to be exact.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeGuard

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.chains import spoken
from certs.keys import require_p256

__all__ = [
    "CLOCK_LEEWAY",
    "BadAssertion",
    "BadProof",
    "BadStatement",
    "Reason",
    "check_clock",
    "is_timestamp",
    "open_statement",
    "read_signers",
    "sign_statement",
]

# Which check a statement failed.
Reason = Literal[
    "malformed",  # not a statement of this kind at all
    "algorithm",  # signed by another method than ours
    "type",  # made for another purpose
    "issuer",  # the signer's certificate is of another CA
    "role",  # … or for another role
    "expired",  # … or out of its dates
    "signature",  # altered, or signed with another key
    "audience",  # meant for somebody else
    "lifetime",  # good for longer than we accept
    "clock",  # the clocks of both sides differ too much
    "replayed",  # used before
    "busy",  # more of them than we can remember
]

# By how much the clocks of two machines may differ. With NTP it is milliseconds, without it
# a minute takes weeks; a larger leeway makes what is stolen in transit good for longer.
CLOCK_LEEWAY = timedelta(seconds=60)

# Two P-256 certificates, the longest names, and the PEM of a join answer fit eight times.
MAX_STATEMENT_BYTES = 64 * 1024
# The signer and its CA.
MAX_SIGNERS = 2

# The last second of the year 9999, where datetime ends.
_MAX_TIMESTAMP = 253_402_300_799

_ALGORITHM = "ES256"


class BadStatement(ValueError):
    """A signed message fails a check: `reason` names it, `detail` says it in a sentence."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class BadAssertion(BadStatement):
    """The assertion in the upgrade of a tunnel fails a check."""


class BadProof(BadStatement):
    """A message of a join fails a check."""


def sign_statement(
    key: ec.EllipticCurvePrivateKey,
    chain: Sequence[x509.Certificate],
    *,
    kind: str,
    claims: Mapping[str, Any],
) -> str:
    """Sign `claims`; `chain` is the key's certificate, optionally followed by its CA's."""
    ders = [base64.b64encode(c.public_bytes(Encoding.DER)).decode() for c in chain]
    headers = {"typ": kind, "x5c": ders}
    return jwt.encode(dict(claims), key, algorithm=_ALGORITHM, headers=headers)


def read_signers(token: str, *, kind: str) -> tuple[x509.Certificate, ...]:
    """Who claims to have signed: the signer first. Nothing of it is verified yet.

    Raises:
        BadStatement: If it is no statement of this kind.
    """
    if len(token) > MAX_STATEMENT_BYTES or not token.isascii():
        raise BadStatement(
            "malformed", "what was sent is too long to be a signed statement"
        )
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError) as error:
        raise BadStatement(
            "malformed", "what was sent is not a signed statement"
        ) from error
    if header.get("alg") != _ALGORITHM:
        raise BadStatement("algorithm", f"statements are signed with {_ALGORITHM} only")
    if header.get("typ") != kind:
        raise BadStatement("type", f"the statement is not a {kind}")
    # Other fields (kid, jku, jwk, crit) are ways to ask for another key or other rules.
    if header.keys() != {"alg", "typ", "x5c"}:
        raise BadStatement(
            "malformed", "the statement's header has other fields than alg, typ, x5c"
        )
    return _certificates(header["x5c"])


def open_statement(token: str, signer: x509.Certificate) -> dict[str, Any]:
    """What was said, once the signature is verified with the key of `signer`.

    Raises:
        BadStatement: If `signer` did not sign this.
    """
    try:
        key = require_p256(signer.public_key())
        payload = jwt.PyJWS().decode(token, key, algorithms=[_ALGORITHM])
        claims = json.loads(payload)
    except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
        raise BadStatement(
            "signature",
            "the signature is not that of the certificate that came with it",
        ) from error
    if not isinstance(claims, dict):
        raise BadStatement("malformed", "the signed statement is not a JSON object")
    return claims


def check_clock(
    claimed: datetime,
    now: datetime,
    *,
    whose: str,
    refusal: type[BadStatement] = BadStatement,
) -> None:
    """Compare another machine's time of sending with ours.

    Raises:
        BadStatement: Of the class `refusal`, if they differ by more than the leeway; says by how much.
    """
    difference = claimed - now
    if abs(difference) <= CLOCK_LEEWAY:
        return
    side = "ahead of" if difference > timedelta() else "behind"
    raise refusal(
        "clock",
        f"the clock of {whose} is {spoken(abs(difference))} {side} this one's: set both by NTP "
        f"(a difference of {spoken(CLOCK_LEEWAY)} is accepted)",
    )


def is_timestamp(value: object) -> TypeGuard[int]:
    """True for whole seconds since 1970 that datetime can hold."""
    # `type`, as bool is an int too.
    return type(value) is int and 0 <= value <= _MAX_TIMESTAMP


def _certificates(x5c: object) -> tuple[x509.Certificate, ...]:
    if not isinstance(x5c, list) or not 1 <= len(x5c) <= MAX_SIGNERS:
        raise BadStatement("malformed", f"x5c needs 1 to {MAX_SIGNERS} certificates")
    try:
        return tuple(
            x509.load_der_x509_certificate(base64.b64decode(str(item), validate=True))
            for item in x5c
        )
    except (ValueError, binascii.Error) as error:
        raise BadStatement("malformed", "a certificate in x5c is damaged") from error
