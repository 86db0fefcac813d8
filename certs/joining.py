"""How an agent proves that it has a join secret without sending it, and gets an answer.

The agent signs what it asks for, together with a nonce of the server, with the key behind its
secret (see tokens). The server signs its answer, together with the digest of the request, with
a key whose certificate leads to the pinned CA. So whoever stands between the two can neither
join in the agent's place nor hand it another CA.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from certs.chains import check_issuer, check_validity, pem, pinned_authority
from certs.names import (
    AgentRole,
    ClusterName,
    RoleError,
    ServerRole,
    parse_cluster_name,
    role_of,
)
from certs.nonces import NONCE_LIFETIME, JoinNonces, check_server_clock
from certs.signatures import (
    BadProof,
    BadStatement,
    check_clock,
    is_timestamp,
    open_statement,
    read_signers,
    sign_statement,
)
from certs.tokens import (
    JoinSecret,
    JoinString,
    TokenId,
    new_token,
    parse_token_id,
    signing_key_of,
    verifier_of,
)

__all__ = [
    "NONCE_LIFETIME",
    "BadProof",
    "JoinNonces",
    "JoinRequest",
    "JoinSecret",
    "JoinString",
    "TokenId",
    "check_issued_agent",
    "check_server_clock",
    "new_token",
    "open_answer",
    "parse_token_id",
    "request_digest",
    "sign_answer",
    "sign_request",
    "verifier_of",
    "verify_request",
]

# An empty CSR on P-256 has about 200 bytes.
MAX_CSR_BYTES = 4096
# Ed25519's have 64.
MAX_SIGNATURE_BYTES = 64
# A nonce has 54 characters, a UID of Kubernetes 36, a version a dozen.
MAX_TEXT_CHARACTERS = 128

# The dated history of the messages' version: 1 (2026-11) is the first.
JOIN_VERSION = 1
# What is signed or derived, and for what: one kind of bytes is never good as another.
_REQUEST_PURPOSE = b"tower join request v1"
_ANSWER_KIND = "tower-join-answer+jwt"

_T = TypeVar("_T")


# -- The agent's side ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JoinRequest:
    """What an agent asks for, and its proof that it holds the token's secret."""

    token_id: TokenId
    cluster: ClusterName
    csr: bytes  # DER
    nonce: str  # the server's
    member_uid: str
    agent_version: str
    signature: bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON carries it."""
        return {
            "version": JOIN_VERSION,
            "token_id": self.token_id,
            "cluster": self.cluster,
            "csr": base64.b64encode(self.csr).decode(),
            "nonce": self.nonce,
            "member_uid": self.member_uid,
            "agent_version": self.agent_version,
            "signature": base64.b64encode(self.signature).decode(),
        }

    @classmethod
    def from_dict(cls, data: object) -> "JoinRequest":
        """Read what JSON carried. Unknown fields are ignored: no signature covers them.

        Raises:
            BadProof: `malformed`, naming the field.
        """
        if not isinstance(data, Mapping):
            raise BadProof("malformed", "the join request is not a JSON object")
        if data.get("version") != JOIN_VERSION:
            raise BadProof(
                "malformed",
                f"the join request is not of version {JOIN_VERSION}, which this server speaks: "
                "run agent and server of the same release",
            )
        return cls(
            token_id=_field(data, "token_id", parse_token_id),
            cluster=_field(data, "cluster", parse_cluster_name),
            csr=_field(data, "csr", _bytes_up_to(MAX_CSR_BYTES)),
            nonce=_field(data, "nonce", _plain_text),
            member_uid=_field(data, "member_uid", _plain_text),
            agent_version=_field(data, "agent_version", _plain_text),
            signature=_field(data, "signature", _bytes_up_to(MAX_SIGNATURE_BYTES)),
        )

    def _signed_bytes(self) -> bytes:
        """Everything but the signature. Lengths come first, so no two requests look alike."""
        parts = [
            _REQUEST_PURPOSE,
            self.token_id.encode(),
            self.cluster.encode(),
            self.csr,
            self.nonce.encode(),
            self.member_uid.encode(),
            self.agent_version.encode(),
        ]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def sign_request(
    secret: JoinSecret,
    *,
    token_id: TokenId,
    cluster: ClusterName,
    csr: bytes,
    nonce: str,
    member_uid: str,
    agent_version: str,
) -> JoinRequest:
    """Make a join request. The same input gives the same request, so it can be sent again."""
    unsigned = JoinRequest(
        token_id=token_id,
        cluster=cluster,
        csr=csr,
        nonce=nonce,
        member_uid=member_uid,
        agent_version=agent_version,
        signature=b"",
    )
    signature = signing_key_of(secret).sign(unsigned._signed_bytes())
    return replace(unsigned, signature=signature)


def request_digest(request: JoinRequest) -> str:
    """What ties an answer to its request: SHA-256 in hex over all of it."""
    return hashlib.sha256(request._signed_bytes() + request.signature).hexdigest()


def open_answer(
    answer: str,
    *,
    request_digest: str,
    now: datetime,
    pin: str | None = None,
    ca: x509.Certificate | None = None,
) -> dict[str, Any]:
    """The payload of the server's answer, once it is proven to be the pinned server's.

    Give either the join string's `pin` or the CA certificate that was checked against it.
    The certificate in the payload is checked by `check_issued_agent`.

    Raises:
        BadProof: If somebody else answered, or to another request, or the clocks differ.
    """
    if (pin is None) == (ca is None):
        raise AssertionError("open_answer takes either a pin or a CA")
    try:
        claims, signer = _open_signed_answer(answer, pin=pin, ca=ca)
    except BadProof:
        raise
    except BadStatement as error:
        raise BadProof(error.reason, error.detail) from error
    except ValueError as error:
        raise BadProof("issuer", str(error)) from error
    if claims.get("request") != request_digest:
        raise BadProof(
            "audience", "the server's answer belongs to another request; join again"
        )
    payload = _payload_of(claims, now)
    try:
        check_validity(signer, now)
    except ValueError as error:
        raise BadProof("expired", f"the server's own certificate: {error}") from error
    return payload


def check_issued_agent(
    certificate: x509.Certificate,
    *,
    public_key: ec.EllipticCurvePublicKey,
    cluster: ClusterName,
    ca: x509.Certificate,
    now: datetime,
) -> AgentRole:
    """Check that a certificate is the one that we asked for; returns its role.

    Raises:
        ValueError: If it is for another key or cluster, of another CA, or not valid now.
    """
    check_issuer(certificate, [ca])
    check_validity(certificate, now)
    role = role_of(certificate)
    if not isinstance(role, AgentRole) or role.cluster != cluster:
        raise RoleError(
            f"the server issued a certificate that is not for an agent of {cluster}"
        )
    if certificate.public_key() != public_key:
        raise ValueError(
            "the server issued a certificate for another key than ours; join again"
        )
    return role


# -- The server's side ---------------------------------------------------------------------


def verify_request(verifier: bytes, request: JoinRequest) -> None:
    """Check that who made the request has the secret behind `verifier`.

    The nonce, the token's state and the CSR are checked by others.

    Raises:
        BadProof: `signature`, if something was altered or the secret is another one.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(verifier)
        key.verify(request.signature, request._signed_bytes())
    except (InvalidSignature, ValueError) as error:
        raise BadProof(
            "signature",
            "the request is not signed with the secret of this token: the join string is not "
            "the one that was printed, or the request was altered on its way",
        ) from error


def sign_answer(
    key: ec.EllipticCurvePrivateKey,
    chain: Sequence[x509.Certificate],
    payload: Mapping[str, Any],
    *,
    request_digest: str,
    now: datetime,
) -> str:
    """Sign the answer to one request. `chain` is the server's certificate, then the CA's.

    The CA's has to be there: an agent that knows only the pin finds it in here.
    """
    if len(chain) != 2:
        raise AssertionError(
            "an answer's chain is the server's certificate and its CA's"
        )
    claims = {
        "answer": dict(payload),
        "request": request_digest,
        "iat": int(now.timestamp()),
    }
    return sign_statement(key, chain, kind=_ANSWER_KIND, claims=claims)


# -- Parts ---------------------------------------------------------------------------------


def _open_signed_answer(
    answer: str, *, pin: str | None, ca: x509.Certificate | None
) -> tuple[dict[str, Any], x509.Certificate]:
    chain = read_signers(answer, kind=_ANSWER_KIND)
    authority = ca if pin is None else pinned_authority(pem(*chain), pin)
    assert authority is not None  # open_answer takes one of both
    signer = chain[0]
    check_issuer(signer, [authority])
    try:
        role = role_of(signer)
    except RoleError as error:
        raise BadProof("role", f"who answered is no server: {error}") from error
    if not isinstance(role, ServerRole):
        raise BadProof(
            "role", "who answered has a certificate of this CA and is not its server"
        )
    return open_statement(answer, signer), signer


def _payload_of(claims: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    issued, payload = claims.get("iat"), claims.get("answer")
    if not is_timestamp(issued) or not isinstance(payload, dict):
        raise BadProof("malformed", "the server's answer lacks its time or its content")
    claimed = datetime.fromtimestamp(issued, tz=UTC)
    check_clock(claimed, now, whose="the server", refusal=BadProof)
    return payload


def _field(data: Mapping[str, Any], name: str, parse: Callable[[str], _T]) -> _T:
    value = data.get(name)
    try:
        if not isinstance(value, str):
            raise ValueError("it is missing, or no text")
        return parse(value)
    except ValueError as error:
        raise BadProof("malformed", f"the join request's {name}: {error}") from error


def _plain_text(text: str) -> str:
    if len(text) > MAX_TEXT_CHARACTERS or not text.isascii() or not text.isprintable():
        raise ValueError(
            f"it is not up to {MAX_TEXT_CHARACTERS} printable ASCII characters"
        )
    return text


def _bytes_up_to(limit: int) -> Callable[[str], bytes]:
    def decode(text: str) -> bytes:
        if len(text) > 2 * limit:
            raise ValueError(f"it is longer than {limit} bytes")
        return base64.b64decode(text, validate=True)

    return decode
