"""Who may become which member: the rules over what the store knows. Pure.

A member comes by its agent's join (`decide_join`), or by a kubeconfig that the admin gives us for a
direct connection (`decide_direct`). A store calls these inside its transaction, so that the decision
and what follows from it are one step, whichever store it is.

The member's UID (that of its kube-system namespace) is reported by the agent, or read with the
kubeconfig. It guards against mistakes, such as a manifest applied to the wrong cluster, and not
against attackers.
"""

import dataclasses
from datetime import datetime
from enum import StrEnum

from certs.keys import PrivateBytes
from certs.names import ClusterName
from tower_server.tokens import (
    RESEND_WINDOW,
    TokenId,
    TokenRecord,
    TokenState,
    state_of,
)

__all__ = [
    "ClusterRecord",
    "DirectMember",
    "JoinRefused",
    "Refusal",
    "TokenUse",
    "agent_is_current",
    "decide_direct",
    "decide_direct_update",
    "decide_join",
    "refuse_unusable",
    "wrong_token",
]


class Refusal(StrEnum):
    """Why a join is refused: the `error` field of the HTTP answer."""

    BAD_REQUEST = "bad_request"  # not a join request, or a CSR that we do not sign
    NONCE_EXPIRED = "nonce_expired"  # the agent fetches another one and asks again
    SLOW_DOWN = "slow_down"  # too many wrong proofs; see Retry-After
    TOKEN_WRONG = "token_wrong"  # unknown id, or a proof by another secret
    TOKEN_EXPIRED = "token_expired"
    TOKEN_USED = "token_used"
    TOKEN_REVOKED = "token_revoked"
    TOKEN_OTHER_CLUSTER = "token_other_cluster"
    NAME_TAKEN = "name_taken"  # another member has this name
    MEMBER_JOINED_ELSEWHERE = "member_joined_elsewhere"  # this member has another name
    # Of a renewal, and of a tunnel: this agent is not welcome any more.
    CLUSTER_REMOVED = "cluster_removed"
    CERTIFICATE_REPLACED = "certificate_replaced"
    CONNECTED_OTHERWISE = "connected_otherwise"  # by an agent, not directly; or so


class JoinRefused(Exception):
    """A join may not happen; the sentence is meant for whoever reads the agent's log."""

    def __init__(self, code: Refusal, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterRecord:
    """A member as the store keeps it; one with a direct connection has no agent."""

    name: ClusterName
    member_uid: str
    joined_at: datetime  # of the latest join, so a re-join moves it
    # All four, or none of them where the connection is direct:
    agent_serial: int | None = None  # of the one agent certificate that is good
    agent_key_pin: str | None = None  # "sha256:<hex>" of that certificate's key
    agent_version: str | None = None  # as reported at the join
    token_id: TokenId | None = None  # the token of that join

    @property
    def is_direct(self) -> bool:
        """Whether we reach it by a kubeconfig, and not through its agent's tunnel."""
        return self.agent_serial is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectMember:
    """A member that the server reaches by itself: with a credential of that member's own.

    The one thing in a store that is worth something to who steals it.
    """

    cluster: ClusterName
    member_uid: str
    kubeconfig: PrivateBytes  # of one context
    allow_users: frozenset[
        str
    ]  # as whom the host may act there, as an agent's settings say
    allow_groups: frozenset[str]
    is_insecure_allowed: bool  # the apiserver's certificate need not be verified
    added_at: datetime
    updated_at: datetime  # of the kubeconfig

    @property
    def record(self) -> ClusterRecord:
        """The cluster that it is."""
        return ClusterRecord(
            name=self.cluster, member_uid=self.member_uid, joined_at=self.added_at
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenUse:
    """A proven join that is about to be recorded: the certificate exists, nobody has it yet."""

    token_id: TokenId
    cluster: ClusterName
    member_uid: str
    agent_version: str
    key_pin: str
    serial: int
    certificate: bytes  # PEM chain, repeated to an agent that lost the answer
    at: datetime

    @property
    def record(self) -> ClusterRecord:
        """What every store keeps of the cluster once the join is recorded."""
        return ClusterRecord(
            name=self.cluster,
            member_uid=self.member_uid,
            agent_serial=self.serial,
            agent_key_pin=self.key_pin,
            agent_version=self.agent_version,
            joined_at=self.at,
            token_id=self.token_id,
        )

    def used(self, token: TokenRecord) -> TokenRecord:
        """The token as it is kept then."""
        return dataclasses.replace(
            token,
            used_at=self.at,
            used_by_key_pin=self.key_pin,
            issued_certificate=self.certificate,
        )


def decide_join(
    use: TokenUse,
    *,
    token: TokenRecord | None,
    named: ClusterRecord | None,
    same_uid: ClusterRecord | None,
) -> bytes | None:
    """Decide whether `use` may be recorded.

    Args:
        token: The record of `use.token_id`.
        named: The cluster that has the name `use.cluster`.
        same_uid: The cluster that has the UID `use.member_uid`.

    Returns:
        None if the join is to be recorded; the certificate chain of an earlier answer if this is
        the same agent asking again, and then nothing may be recorded.

    Raises:
        JoinRefused: With one sentence that says why and what to do.
    """
    if token is None:
        raise wrong_token()
    if token.cluster != use.cluster:
        raise JoinRefused(
            Refusal.TOKEN_OTHER_CLUSTER,
            f"The join token {token.id} is for another cluster than {use.cluster!r}: "
            f"create one with `tower token create {use.cluster}`.",
        )
    if _is_resend(token, use.key_pin, use.at) and _still_stands(named, use):
        return token.issued_certificate
    refuse_unusable(token, use.at)
    _refuse_other_name_or_member(
        use.cluster, use.member_uid, named=named, same_uid=same_uid
    )
    if named is not None and named.is_direct:
        raise JoinRefused(
            Refusal.CONNECTED_OTHERWISE,
            f"{use.cluster!r} has a direct connection, by a kubeconfig: end that with "
            f"`tower cluster remove {use.cluster}`, then create a new token and join.",
        )
    return None


def decide_direct(
    member: DirectMember,
    *,
    named: ClusterRecord | None,
    same_uid: ClusterRecord | None,
) -> None:
    """Decide whether a new direct connection may be recorded; the arguments are as above.

    Raises:
        JoinRefused: With one sentence that says why and what to do.
    """
    name = member.cluster
    _refuse_other_name_or_member(
        name, member.member_uid, named=named, same_uid=same_uid
    )
    if named is None:
        return
    if named.is_direct:
        raise JoinRefused(
            Refusal.NAME_TAKEN,
            f"{name!r} is there already, with a direct connection: give it another kubeconfig "
            f"with `tower cluster set-kubeconfig {name}`.",
        )
    raise JoinRefused(
        Refusal.CONNECTED_OTHERWISE,
        f"{name!r} is connected through its agent: end that with `tower cluster remove {name}`, "
        "then add it with the kubeconfig.",
    )


def decide_direct_update(member: DirectMember, *, named: ClusterRecord) -> None:
    """Decide whether what `named` is reached by may be replaced.

    Raises:
        JoinRefused: With one sentence that says why and what to do.
    """
    name = member.cluster
    if not named.is_direct:
        raise JoinRefused(
            Refusal.CONNECTED_OTHERWISE,
            f"{name!r} is connected through its agent and needs no kubeconfig: leave it so, or end "
            f"that with `tower cluster remove {name}` and add it again.",
        )
    if named.member_uid != member.member_uid:
        raise JoinRefused(
            Refusal.NAME_TAKEN,
            f"The kubeconfig leads to another cluster than {name!r} (UID {member.member_uid}, not "
            f"{named.member_uid}): give one of {name!r}, or free the name with "
            f"`tower cluster remove {name}`.",
        )


def _refuse_other_name_or_member(
    name: ClusterName,
    member_uid: str,
    *,
    named: ClusterRecord | None,
    same_uid: ClusterRecord | None,
) -> None:
    """A name is one member's, and a member has one name."""
    if named is not None and named.member_uid != member_uid:
        raise JoinRefused(
            Refusal.NAME_TAKEN,
            f"The name {name!r} is taken by another member (UID {named.member_uid}, this "
            f"one has {member_uid}): choose another name, or free this one with "
            f"`tower cluster remove {name}`.",
        )
    if same_uid is not None and same_uid.name != name:
        raise JoinRefused(
            Refusal.MEMBER_JOINED_ELSEWHERE,
            f"This member (UID {member_uid}) has already joined as {same_uid.name!r}: use "
            f"that name, or free the member with `tower cluster remove {same_uid.name}`.",
        )


def refuse_unusable(
    token: TokenRecord, now: datetime, *, resend_key_pin: str | None = None
) -> None:
    """Raise JoinRefused unless the token may be used at `now`.

    A used token passes for `resend_key_pin` within the resend window: whether it really gets the
    earlier answer is decided by `decide_join`, in the store's transaction.
    """
    if resend_key_pin is not None and _is_resend(token, resend_key_pin, now):
        return
    again = f"create a new one with `tower token create {token.cluster}`."
    match state_of(token, now):
        case TokenState.READY:
            return
        case TokenState.REVOKED:
            raise JoinRefused(
                Refusal.TOKEN_REVOKED,
                f"The join token {token.id} was revoked at {_text(token.revoked_at)}: {again}",
            )
        case TokenState.USED:
            raise JoinRefused(
                Refusal.TOKEN_USED,
                f"The join token {token.id} was already used at {_text(token.used_at)}; each is "
                f"good for one join: {again}",
            )
        case TokenState.EXPIRED:
            raise JoinRefused(
                Refusal.TOKEN_EXPIRED,
                f"The join token {token.id} expired at {_text(token.expires_at)}: {again}",
            )


def wrong_token() -> JoinRefused:
    """Build the refusal of an unknown id and of a wrong secret: a guesser learns no difference."""
    return JoinRefused(
        Refusal.TOKEN_WRONG,
        "The join token is not one of this server's, or its secret is wrong: copy the whole join "
        "string again, or create a new one with `tower token create CLUSTER`.",
    )


def agent_is_current(record: ClusterRecord | None, *, key_pin: str) -> bool:
    """Say whether an agent's key is the one that the cluster's latest join was for.

    A re-join or the removal of the cluster ends every earlier key through this. It is the key that
    counts: its certificate is renewed now and then, and several of them are good side by side.
    """
    return record is not None and record.agent_key_pin == key_pin


def _is_resend(token: TokenRecord, key_pin: str, now: datetime) -> bool:
    return (
        token.used_at is not None
        and token.revoked_at is None
        and token.used_by_key_pin == key_pin
        and token.issued_certificate is not None
        and now - token.used_at <= RESEND_WINDOW
    )


def _still_stands(named: ClusterRecord | None, use: TokenUse) -> bool:
    """A removed cluster, or one that re-joined since, does not come back by an old answer."""
    return (
        named is not None
        and named.token_id == use.token_id
        and named.member_uid == use.member_uid
    )


def _text(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC") if moment else "an unknown time"
