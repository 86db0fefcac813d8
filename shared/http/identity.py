"""Who a request runs as at the member: the identity rules, one place for all faces.

The relay vouches for an identity towards the apiserver with its own credential and
`Impersonate-*` fields, so whoever gets a field of their own past this module runs as
somebody else. In order:

    1. Fields of the hop, and those named by Connection, go.
    2. The caller's credentials go: Authorization, X-Remote-*, and the bearer entry of
       Sec-WebSocket-Protocol.
    3. The caller's own Impersonate-* (kubectl --as) are never dropped and never believed:
       they become a `Review`, which must be asked at the member before anything is sent.
    4. Users and groups that the policy does not list are refused, by name.

All of this is pure: a head goes in, and a `Forward` or a `Refusal` comes out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from shared.http.heads import RequestHead, list_entries
from shared.http.status import AGENT, Refusal, Speaker

__all__ = [
    "DEFAULT_GROUPS",
    "DEFAULT_USERS",
    "MAX_NAME_BYTES",
    "Caller",
    "Forward",
    "Policy",
    "Review",
    "check_name",
    "identity_lines",
    "judge",
    "relayed_lines",
]

# Longer names are nobody's; Kubernetes' own are below 253.
MAX_NAME_BYTES = 256

# Each group of a --as-group is a review of its own at the member.
MAX_REVIEWED_GROUPS = 32

DEFAULT_USERS = frozenset({"tower:admin"})
DEFAULT_GROUPS = frozenset({"tower:cluster-admins"})

# Fields that end at each hop (RFC 9110, 7.6.1). Host and the framing are set anew.
_HOP_FIELDS = frozenset(
    {
        b"connection",
        b"content-length",
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
_IMPERSONATE = b"impersonate-"
_X_REMOTE = b"x-remote-"
# A bearer token in disguise; the apiserver takes it for the request's own.
_BEARER_PROTOCOL = b"base64url.bearer.authorization.k8s.io."
# Connection may name these only in an attempt to make them disappear on the way.
_NEVER_OF_THE_HOP = frozenset({b"content-length", b"transfer-encoding", b"host"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who is at the other end of a connection, and until when that is believed."""

    user: str
    groups: tuple[str, ...]
    cluster: str
    # Of the certificate: its end, and what the deny-list names. None for a caller for whom
    # somebody else vouches, who then has to look at both (asserted.py).
    not_after: datetime | None = None
    serial: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Which users and groups the host may act as here; `*` is any that is not `system:`."""

    users: frozenset[str] = DEFAULT_USERS
    groups: frozenset[str] = DEFAULT_GROUPS
    # Who applies it, for the sentences.
    speaker: Speaker = AGENT

    def check(self, user: str, groups: Iterable[str]) -> None:
        """Raise a Refusal (403) that names the first user or group not listed."""
        if not _is_listed(user, self.users):
            raise self._forbidden(f"user {user!r}", "--allow-user", user)
        for group in groups:
            if not _is_listed(group, self.groups):
                raise self._forbidden(f"group {group!r}", "--allow-group", group)

    def _forbidden(self, what: str, option: str, name: str) -> Refusal:
        return Refusal(
            code=403,
            message=f"{self.speaker.name} does not act as {what} in this cluster; "
            f"{self.speaker.allowing} {option} {name}",
        )


def _is_listed(name: str, listed: frozenset[str]) -> bool:
    # system:kube-controller-manager alone is a way to cluster-admin: `*` is not enough.
    return name in listed or ("*" in listed and not name.startswith("system:"))


@dataclass(frozen=True, slots=True)
class Review:
    """May `user` with `groups` impersonate the target? To be asked at the member."""

    user: str
    groups: tuple[str, ...]
    target_user: str
    target_groups: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """A request that may be sent on, once its review (if any) is answered with yes."""

    # The caller's fields that pass, as lines with CRLF; framing and upgrade included.
    lines: bytes
    # The Impersonate-* lines: exactly one non-empty user.
    identity: bytes
    review: Review | None


def check_name(name: str) -> None:
    """Refuse a user or group name that could be read as another, or break a field.

    Raises:
        ValueError: With one sentence.
    """
    if not name:
        raise ValueError("a name must not be empty")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise ValueError(f"a name must not be longer than {MAX_NAME_BYTES} bytes")
    if not name.isprintable() or name != name.strip():
        raise ValueError(
            f"{name!r} holds a control character or a blank at its beginning or end"
        )


def identity_lines(user: str, groups: Iterable[str]) -> bytes:
    """The `Impersonate-*` lines of one identity.

    Raises:
        Refusal: If a name cannot stand in a field.
    """
    try:
        lines = []
        for field, name in (
            ("Impersonate-User", user),
            *(("Impersonate-Group", group) for group in groups),
        ):
            check_name(name)
            lines.append(f"{field}: {name}\r\n".encode())
    except ValueError as error:
        raise Refusal(code=403, message=str(error)) from None
    return b"".join(lines)


def judge(head: RequestHead, caller: Caller, policy: Policy) -> Forward:
    """Apply the identity rules to one request.

    Raises:
        Refusal: If the request must not be sent.
    """
    policy.check(caller.user, caller.groups)
    impersonation: list[tuple[bytes, bytes]] = []
    lines = _passing_lines(head, impersonation)
    review = None
    user, groups = caller.user, caller.groups
    if impersonation:
        user, groups = _requested_identity(impersonation, policy.speaker)
        policy.check(user, groups)
        review = Review(caller.user, caller.groups, user, groups)
    return Forward(lines=lines, identity=identity_lines(user, groups), review=review)


def relayed_lines(head: RequestHead) -> bytes:
    """The caller's fields that pass on to another relay of ours, which will judge them.

    The caller's own Impersonate-* are among them: that relay asks the member's apiserver.

    Raises:
        Refusal: If the request must not be sent.
    """
    impersonation: list[tuple[bytes, bytes]] = []
    lines = _passing_lines(head, impersonation)
    asked = b"".join(b"%b: %b\r\n" % field for field in impersonation)
    return asked + lines


def _passing_lines(
    head: RequestHead, impersonation: list[tuple[bytes, bytes]]
) -> bytes:
    """The caller's fields that pass; Impersonate-* are collected instead."""
    for named in head.connection:
        if named in _NEVER_OF_THE_HOP or named.startswith(_IMPERSONATE):
            raise Refusal(
                code=400, message=f"Connection must not name {named.decode('latin-1')}"
            )
    kept: list[bytes] = []
    for name, value in head.fields:
        lower = name.lower()
        dashed = lower.replace(b"_", b"-")
        is_impersonation = dashed.startswith(_IMPERSONATE)
        if (
            is_impersonation
            or dashed.startswith(_X_REMOTE)
            or dashed == b"authorization"
        ):
            if dashed != lower:
                raise Refusal(
                    code=400, message=f"{name.decode()} is spelled with an underscore"
                )
            if is_impersonation:
                impersonation.append((lower, value))
            continue
        if lower in _HOP_FIELDS or lower in head.connection:
            continue
        if dashed == b"sec-websocket-protocol":
            value = _without_bearer(value)
            if not value:
                continue
        kept.append(b"%b: %b\r\n" % (name, value))
    kept.append(_own_lines(head))
    return b"".join(kept)


def _own_lines(head: RequestHead) -> bytes:
    """Framing and upgrade, in one spelling, from what the head was understood to say."""
    if head.is_chunked:
        return b"Transfer-Encoding: chunked\r\n"
    if head.upgrade is not None:
        protocol = b"SPDY/3.1" if head.upgrade == b"spdy/3.1" else head.upgrade
        return _length_line(head) + b"Connection: Upgrade\r\nUpgrade: %b\r\n" % protocol
    return _length_line(head)


def _length_line(head: RequestHead) -> bytes:
    # A POST of nothing says so; a GET says nothing.
    if head.content_length or head.method in (b"POST", b"PUT", b"PATCH"):
        return b"Content-Length: %d\r\n" % head.content_length
    return b""


def _without_bearer(value: bytes) -> bytes:
    entries = [
        entry
        for entry in list_entries(value)
        if not entry.lower().startswith(_BEARER_PROTOCOL)
    ]
    return b", ".join(entries)


def _requested_identity(
    fields: list[tuple[bytes, bytes]], speaker: Speaker
) -> tuple[str, tuple[str, ...]]:
    """The user and groups of the caller's own Impersonate-* fields."""
    users: list[str] = []
    groups: list[str] = []
    for name, value in fields:
        if name not in (b"impersonate-user", b"impersonate-group"):
            raise Refusal(
                code=403,
                message=f"{speaker.name} does not act with {name.decode()}: only "
                "a user and groups can be impersonated through it",
            )
        try:
            text = value.decode()
            check_name(text)
        except ValueError as error:
            raise Refusal(code=400, message=f"{name.decode()}: {error}") from None
        (users if name == b"impersonate-user" else groups).append(text)
    if len(users) != 1:
        raise Refusal(
            code=400,
            message="to impersonate, there must be exactly one Impersonate-User",
        )
    groups = list(dict.fromkeys(groups))
    if len(groups) > MAX_REVIEWED_GROUPS:
        raise Refusal(
            code=400,
            message=f"more than {MAX_REVIEWED_GROUPS} Impersonate-Group fields",
        )
    return users[0], tuple(groups)
