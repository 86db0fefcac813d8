"""Join tokens: a public id, a secret, and the one line that carries both to an agent.

Each secret is the seed of an Ed25519 key. The server keeps only that key's public half (the
verifier): whoever reads its store can check proofs and make none.
"""

import base64
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NewType, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certs.keys import parse_pin
from certs.names import ClusterName, parse_cluster_name, parse_host

__all__ = [
    "JoinSecret",
    "JoinString",
    "TokenId",
    "new_token",
    "parse_token_id",
    "signing_key_of",
    "verifier_of",
]

TokenId = NewType("TokenId", str)

# 192 bits: beyond guessing, and 32 characters without padding. From others we take 160 and
# more, as promised in the README; design.md, 3 asks for 128.
SECRET_BYTES = 24
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 20, 64
# 12 of 32 letters: 60 bits, so that two never meet. Public: it stands in lists and logs.
TOKEN_ID_CHARACTERS = 12
# Letters and digits that nobody confuses when reading them aloud.
_TOKEN_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_TOKEN_ID = re.compile(r"[a-z0-9]{4,32}")
_SECRET = re.compile(r"[A-Za-z0-9_-]+")
# What the key is derived for, so that the secret is good for nothing else.
_KEY_PURPOSE = b"tower join token v1"

# The longest host, cluster and secret fit in it; a longer text is something else.
MAX_JOIN_STRING_CHARACTERS = 1024
_SCHEME = "tower+join://"
_JOIN_STRING = re.compile(
    re.escape(_SCHEME)
    + r"(?P<cluster>[^:@/?#]*):(?P<token_id>[^:@/?#.]*)\.(?P<secret>[^:@/?#.]*)"
    r"@(?P<address>[^@/?#]*)\?pin=(?P<pin>[^@/?#&]*)"
)
_ADDRESS = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[1-9][0-9]{0,4})"
)

_T = TypeVar("_T")


class JoinSecret:
    """The secret half of a join token. Shows itself only by `reveal`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Take a secret as it stands in a join string.

        Raises:
            ValueError: If it is none; says nothing of what it is.
        """
        if _decode_secret(text) is None:
            raise ValueError(
                f"the join secret is not {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in "
                "base64url: it was not copied whole"
            )
        self._text = text

    def reveal(self) -> str:
        """The secret itself: for the one line on which a join string is printed."""
        return self._text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JoinSecret):
            return NotImplemented
        return hmac.compare_digest(self._text, other._text)

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "JoinSecret(not shown)"

    def __reduce__(self) -> Any:
        raise TypeError("a JoinSecret is not pickled: it would stand in a file")


def new_token() -> tuple[TokenId, JoinSecret]:
    """A new token: its public id, and its secret."""
    token_id = "".join(
        secrets.choice(_TOKEN_ID_ALPHABET) for _ in range(TOKEN_ID_CHARACTERS)
    )
    return TokenId(token_id), JoinSecret(_base64url(secrets.token_bytes(SECRET_BYTES)))


def parse_token_id(text: str) -> TokenId:
    """Check the shape of a token's id.

    Raises:
        ValueError: If it is none.
    """
    if not _TOKEN_ID.fullmatch(text):
        raise ValueError("a token's id is 4 to 32 lower-case letters and digits")
    return TokenId(text)


def verifier_of(secret: JoinSecret) -> bytes:
    """What the server keeps of a secret: 32 bytes that check proofs and cannot make one."""
    return (
        signing_key_of(secret).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    )


def signing_key_of(secret: JoinSecret) -> Ed25519PrivateKey:
    """The key that proves possession of a secret."""
    data = _decode_secret(secret.reveal())
    assert data is not None  # JoinSecret.__init__ checked it
    kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_KEY_PURPOSE)
    return Ed25519PrivateKey.from_private_bytes(kdf.derive(data))


@dataclass(frozen=True, kw_only=True)
class JoinString:
    """All that an agent needs to join: where, as what, with which secret, trusting whom."""

    cluster: ClusterName
    host: str  # a DNS name or an address, IPv6 without brackets
    port: int
    token_id: TokenId
    secret: JoinSecret
    pin: str

    def format(self) -> str:
        """The join string in one line, secret included: print it, never log it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            f"tower+join://{self.cluster}:{self.token_id}.{self.secret.reveal()}"
            f"@{host}:{self.port}?pin={self.pin}"
        )

    @classmethod
    def parse(cls, text: str) -> "JoinString":
        """Read a join string; blanks and line ends around it do no harm.

        Raises:
            ValueError: Says which part is wrong, and repeats nothing of the text: any part
                of a broken one may be the secret.
        """
        text = text.strip()
        match = (
            _JOIN_STRING.fullmatch(text)
            if len(text) <= MAX_JOIN_STRING_CHARACTERS
            else None
        )
        if match is None:
            raise ValueError(_join_string_fault(text))
        host, port = _split_address(match["address"])
        return cls(
            cluster=_part("cluster's name", parse_cluster_name, match["cluster"]),
            host=_part("server's host", parse_host, host),
            port=port,
            token_id=_part("token's id", parse_token_id, match["token_id"]),
            secret=_part("secret", JoinSecret, match["secret"]),
            pin=_part("pin", parse_pin, match["pin"]),
        )


def _join_string_fault(text: str) -> str:
    """What is most likely wrong with a text that is no join string at all."""
    remedy = "copy the whole line that `tower token create` printed"
    if not text:
        return f"the join string is empty: {remedy}"
    if len(text.split()) > 1:
        return f"the join string is more than one word: {remedy}, and nothing else"
    if not text.startswith(_SCHEME):
        return f"this is no join string: it does not begin with {_SCHEME}; {remedy}"
    if "?pin=" not in text:
        return f"the join string is cut short, its pin is missing: {remedy}"
    return f"the join string is damaged: {remedy}"


def _split_address(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65_535:
        raise ValueError("the join string's server address is not HOST:PORT")
    return match["ipv6"] or match["host"], int(match["port"])


def _part(name: str, parse: Callable[[str], _T], text: str) -> _T:
    try:
        return parse(text)
    except ValueError:
        # `from None`: the parser's error repeats the text.
        raise ValueError(
            f"the {name} in the join string is damaged: copy the whole line that `tower token "
            "create` printed"
        ) from None


def _decode_secret(text: str) -> bytes | None:
    """The secret's bytes; None when it is not the one base64url spelling of enough of them."""
    if not _SECRET.fullmatch(text) or len(text) > 2 * MAX_SECRET_BYTES:
        return None
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    whole = MIN_SECRET_BYTES <= len(data) <= MAX_SECRET_BYTES
    return data if whole and _base64url(data) == text else None


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
