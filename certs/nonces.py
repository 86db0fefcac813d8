"""Nonces of a joining server, without memory: each carries its time, and a tag of ours.

A nonce makes a join request young: what somebody recorded yesterday cannot be sent again. It
also shows the agent the server's clock before anything is spent.
"""

import base64
import binascii
import hmac
import secrets
from datetime import UTC, datetime, timedelta

from certs.signatures import CLOCK_LEEWAY, BadProof, check_clock, is_timestamp

__all__ = ["NONCE_LIFETIME", "JoinNonces", "check_server_clock"]

# How long an agent may take between asking for a nonce and sending its request. It makes its
# key before; over a bad line this is still ample.
NONCE_LIFETIME = timedelta(seconds=120)

# Seconds since 1970, big-endian; random; the first half of an HMAC-SHA256 over both.
_TIME_BYTES, _RANDOM_BYTES, _TAG_BYTES = 8, 16, 16

# What the key is used for, so that it may be one that has other uses.
_PURPOSE = b"tower join nonce v1"


class JoinNonces:
    """Nonces without memory: each carries its time, and a tag that only we can make.

    One can be used more than once within its lifetime. That does no harm: the same request
    gets the same answer, and for another one the token is used up.
    """

    def __init__(self, key: bytes) -> None:
        """Take a secret key of 32 bytes or more; all replicas of a server share it."""
        if len(key) < 32:
            raise ValueError("the key for nonces needs 32 bytes or more")
        # Authenticates our nonces; of no use for anything else.
        self._key = hmac.digest(key, _PURPOSE, "sha256")

    def __repr__(self) -> str:
        return "JoinNonces(key not shown)"

    def issue(self, now: datetime) -> str:
        """A new nonce."""
        time = int(now.timestamp()).to_bytes(_TIME_BYTES, "big")
        body = time + secrets.token_bytes(_RANDOM_BYTES)
        return base64.urlsafe_b64encode(body + self._tag(body)).rstrip(b"=").decode()

    def check(self, nonce: str, now: datetime) -> None:
        """Check that a nonce is ours and young.

        Raises:
            BadProof: `signature` when it is not ours, `expired` when it is too old.
        """
        data = _decode_nonce(nonce)
        body, tag = data[:-_TAG_BYTES], data[-_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(body)):
            raise BadProof(
                "signature", "the nonce is not this server's; ask for a new one"
            )
        age = now - _nonce_time(data)
        # Ahead of us is another replica's clock, which may differ as much as anybody's.
        if not -CLOCK_LEEWAY <= age <= NONCE_LIFETIME:
            raise BadProof(
                "expired",
                f"the nonce is not of the last {NONCE_LIFETIME.total_seconds():.0f} s; ask for a "
                "new one",
            )

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_TAG_BYTES]


def check_server_clock(nonce: str, now: datetime) -> None:
    """Compare the server's clock, as its nonce shows it, with ours: before the token is spent.

    The nonce cannot be verified here, but who would alter it could as well drop it.

    Raises:
        BadProof: `clock`, with the difference; `malformed` if it is no nonce.
    """
    claimed = _nonce_time(_decode_nonce(nonce))
    check_clock(claimed, now, whose="the server", refusal=BadProof)


def _decode_nonce(nonce: str) -> bytes:
    try:
        data = base64.b64decode(
            nonce + "=" * (-len(nonce) % 4), altchars=b"-_", validate=True
        )
    except (ValueError, binascii.Error) as error:
        raise BadProof("malformed", "the nonce is not one of a Tower server") from error
    if len(data) != _TIME_BYTES + _RANDOM_BYTES + _TAG_BYTES:
        raise BadProof("malformed", "the nonce is not one of a Tower server")
    return data


def _nonce_time(data: bytes) -> datetime:
    timestamp = int.from_bytes(data[:_TIME_BYTES], "big")
    # An agent reads nonces unproven.
    if not is_timestamp(timestamp):
        raise BadProof("malformed", "the nonce is not one of a Tower server")
    return datetime.fromtimestamp(timestamp, tz=UTC)
