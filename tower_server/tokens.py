"""The rules of one join token: what it is, what state it is in, when it may be used. Pure.

A token is bound to one cluster name, is used once and expires. We keep only the public half of
the key that both sides derive from its secret, so a stolen store cannot join anything.
"""

import dataclasses
from datetime import datetime, timedelta
from enum import StrEnum

from certs.joining import TokenId
from certs.names import ClusterName

__all__ = [
    "FINISHED_TOKEN_RETENTION",
    "MAX_FINISHED_TOKENS",
    "MAX_OUTSTANDING_TOKENS",
    "RESEND_WINDOW",
    "TokenId",
    "TokenRecord",
    "TokenState",
    "disposable_tokens",
    "state_of",
]

# A joining agent whose answer got lost asks again with the same token and key, and gets the same
# certificate. Ten minutes cover a crash-looping pod's back-off (at most 5 minutes) once.
RESEND_WINDOW = timedelta(minutes=10)

# Used, revoked and expired tokens stay listed for a week, so that a late agent is told what
# happened to its token instead of "unknown".
FINISHED_TOKEN_RETENTION = timedelta(days=7)

# Tokens that could still be used. The largest fleet that we design for (10,000 members) can be
# invited at once; beyond it a script has probably gone wrong. A record is below 1 KiB.
MAX_OUTSTANDING_TOKENS = 10_000

# Finished tokens within their retention; the oldest go first. Bounds the store to a few MB.
MAX_FINISHED_TOKENS = 10_000


class TokenState(StrEnum):
    """What has become of a token. The order of precedence is that of `state_of`."""

    REVOKED = "revoked"  # an admin took it back
    USED = "used"  # a cluster joined with it
    EXPIRED = "expired"  # nobody did, in time
    READY = "ready"  # may be used


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """A join token as the store keeps it. It contains no secret."""

    id: TokenId
    cluster: ClusterName
    verifier: bytes  # Ed25519 public key derived from the secret
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    used_by_key_pin: str | None = None  # pin of the agent key that joined with it
    revoked_at: datetime | None = None
    # PEM chain that the join answered with, for an agent that lost the answer.
    issued_certificate: bytes | None = dataclasses.field(default=None, repr=False)


def state_of(token: TokenRecord, now: datetime) -> TokenState:
    """Return the token's state at `now`. It may not be used at the instant of its expiry."""
    if token.revoked_at is not None:
        return TokenState.REVOKED
    if token.used_at is not None:
        return TokenState.USED
    if now >= token.expires_at:
        return TokenState.EXPIRED
    return TokenState.READY


def disposable_tokens(tokens: list[TokenRecord], now: datetime) -> list[TokenId]:
    """Name the tokens that the store may forget: finished for long, or too many finished ones."""
    finished = sorted(
        ((end, token.id) for token in tokens if (end := _finished_at(token, now))),
    )
    surplus = len(finished) - MAX_FINISHED_TOKENS
    return [
        token_id
        for index, (end, token_id) in enumerate(finished)
        if index < surplus or now - end > FINISHED_TOKEN_RETENTION
    ]


def _finished_at(token: TokenRecord, now: datetime) -> datetime | None:
    """Return since when the token is good for nothing; None while it may still be of use."""
    match state_of(token, now):
        case TokenState.READY:
            return None
        case TokenState.EXPIRED:
            return token.expires_at
        case TokenState.REVOKED:
            return token.revoked_at
        case TokenState.USED:
            # Still answers a lost answer's repetition: not finished before that window ends.
            assert token.used_at is not None
            return None if now - token.used_at <= RESEND_WINDOW else token.used_at
