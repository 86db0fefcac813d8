"""What has to be done about one cluster, from what is wanted and what is there. Pure.

The Cluster object says what is wanted, the ledger what there is. They disagree in these ways:

    no object, a member         it came by the command line: make the object
    no object, a ledger of one  the object was taken away past its finalizer: remove the member
    an object being deleted     remove the member, take join Secret and finalizer away
    an object that an admin     delete it
      dismissed (`remove`)
    an object, no member        proxy: keep a join Secret with a good token; direct: try the kubeconfig
    an object, a member         take the join Secret away; direct: take a kubeconfig that has changed
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from certs.names import ClusterName
from tower_server.controllers.objects import ClusterView, SecretView, digest_of
from tower_server.stores.ledger import Ledger
from tower_server.tokens import TokenId, TokenRecord, TokenState, state_of

__all__ = ["INVITATION_TTL", "Action", "Observed", "Plan", "Rejection", "plan"]

# A day to hand it over, as with `tower token create`; a new one when a third of it is left, so that
# whoever reads the Secret always has eight hours.
INVITATION_TTL = timedelta(hours=24)
RENEW_BEFORE = timedelta(hours=8)

# A kubeconfig that was refused because of the member (not there, rights missing) is tried again.
RETRY_REJECTED = timedelta(seconds=20)


class Action(Enum):
    """One step; all can be repeated."""

    ADD_FINALIZER = auto()
    DROP_FINALIZER = auto()
    REMOVE_MEMBER = auto()  # revoke and cut; the object is there, and says so
    REMOVE_ORPHAN = auto()  # the same, once it is certain that there is no object
    CREATE_OBJECT = auto()
    DELETE_OBJECT = auto()
    ADOPT = auto()  # note that the ledger belongs to the object
    DISOWN = auto()  # ... or to none
    INVITE = auto()  # a new token, and the join Secret with it
    DELETE_JOIN_SECRET = auto()
    TAKE_KUBECONFIG = auto()


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A kubeconfig that could not be taken."""

    digest: str
    reason: str  # of the condition
    sentence: str
    at: datetime
    # Whether the same kubeconfig may be good later.
    may_pass: bool


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Everything about one cluster at one moment."""

    name: ClusterName
    now: datetime
    ledger: Ledger
    cluster: ClusterView | None = None
    join: SecretView | None = None
    # What the join Secret would have to be made of; see `clusters`.
    fingerprint: str = ""
    # What the Secret of a direct connection holds.
    kubeconfig: bytes | None = None
    rejection: Rejection | None = None

    @property
    def invitation(self) -> TokenRecord | None:
        """The token in the join Secret, while it is good."""
        if self.join is None or self.join.token_id is None:
            return None
        token = self.ledger.token(TokenId(self.join.token_id))
        is_ready = token is not None and state_of(token, self.now) is TokenState.READY
        return token if is_ready else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps in order, and when to look again if nothing happens before."""

    actions: tuple[Action, ...] = ()
    look_again_at: datetime | None = None


def plan(seen: Observed) -> Plan:
    """Decide what to do now. After the actions, look again."""
    cluster, ledger = seen.cluster, seen.ledger
    if cluster is None:
        return Plan(actions=_without_object(ledger))
    if cluster.is_deleting:
        return Plan(actions=_deletion(seen, cluster))
    if ledger.dismissed_uid == cluster.uid:
        return Plan(actions=(Action.DELETE_OBJECT,))
    if cluster.is_paused:
        return Plan()
    first = () if cluster.has_finalizer else (Action.ADD_FINALIZER,)
    if cluster.is_direct:
        rest = _direct(seen)
    elif ledger.record is None:
        rest = _invitation(seen, cluster)
    else:
        rest = Plan(actions=_joined(seen, cluster))
    return Plan(actions=(*first, *rest.actions), look_again_at=rest.look_again_at)


def _without_object(ledger: Ledger) -> tuple[Action, ...]:
    if ledger.owner_uid is not None:
        return (Action.REMOVE_ORPHAN,)
    if ledger.record is not None:
        return (Action.CREATE_OBJECT,)
    if ledger.dismissed_uid is not None:
        return (Action.DISOWN,)
    return ()  # at most invited by the command line


def _deletion(seen: Observed, cluster: ClusterView) -> tuple[Action, ...]:
    if not cluster.has_finalizer:
        return ()  # somebody else's holds it
    actions = []
    if seen.ledger.record is not None or seen.ledger.owner_uid is not None:
        actions.append(Action.REMOVE_MEMBER)
    if seen.join is not None:
        actions.append(Action.DELETE_JOIN_SECRET)
    return (*actions, Action.DROP_FINALIZER)


def _invitation(seen: Observed, cluster: ClusterView) -> Plan:
    token, join = seen.invitation, seen.join
    if (
        token is not None
        and join is not None
        and join.fingerprint == seen.fingerprint
        and join.owner_uid == cluster.uid
        and seen.ledger.owner_uid == cluster.uid
        and seen.now < token.expires_at - RENEW_BEFORE
    ):
        return Plan(look_again_at=token.expires_at - RENEW_BEFORE)
    if seen.rejection is not None:
        return Plan()  # the spec has to change first, and its status says why
    return Plan(actions=(Action.INVITE,))


def _joined(seen: Observed, cluster: ClusterView) -> tuple[Action, ...]:
    actions = []
    if seen.join is not None:
        actions.append(Action.DELETE_JOIN_SECRET)
    if seen.ledger.owner_uid != cluster.uid:
        actions.append(Action.ADOPT)
    return tuple(actions)


def _direct(seen: Observed) -> Plan:
    ledger, cluster = seen.ledger, seen.cluster
    assert cluster is not None
    actions: list[Action] = []
    if ledger.record is not None and ledger.owner_uid != cluster.uid:
        actions.append(Action.ADOPT)
    if ledger.record is not None and not ledger.record.is_direct:
        return Plan(actions=tuple(actions))  # its conditions say so
    if seen.kubeconfig is None or digest_of(seen.kubeconfig) == ledger.taken:
        return Plan(actions=tuple(actions))
    rejected = seen.rejection
    if rejected is not None and rejected.digest == digest_of(seen.kubeconfig):
        again_at = rejected.at + RETRY_REJECTED
        if not rejected.may_pass:
            return Plan(actions=tuple(actions))
        if seen.now < again_at:
            return Plan(actions=tuple(actions), look_again_at=again_at)
    return Plan(actions=(*actions, Action.TAKE_KUBECONFIG))
