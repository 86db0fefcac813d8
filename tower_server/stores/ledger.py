"""What the Kubernetes store keeps of one cluster, as one Secret: its tokens and its membership. Pure.

One object for both, because Kubernetes has no transactions over several: that a token is used and
that its cluster is there is one write, and a compare-and-swap of that one object makes it single use.

The Secret is called `tower-ledger-CLUSTER`. Only the kubeconfig of a direct connection in it is worth
something to a thief; it is a Secret all the same, so that whoever may read ConfigMaps learns nothing.
"""

import base64
import dataclasses
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from certs.keys import PrivateBytes
from certs.names import ClusterName
from tower_server.kube.resources import SECRETS, Object
from tower_server.membership import ClusterRecord, DirectMember
from tower_server.tokens import TokenId, TokenRecord, TokenState, state_of

__all__ = [
    "CLUSTER_LABEL",
    "LEDGER_TYPE",
    "MAX_TOKENS",
    "UNKNOWN_FORMAT",
    "Ledger",
    "ledger_name",
    "ledger_of",
    "secret_of",
    "token_selector",
    "uid_selector",
]

# The type of the Secret, by which we watch them and nothing else of the namespace.
LEDGER_TYPE = "tower.dev/ledger"
CLUSTER_LABEL = "tower.dev/cluster"
_UID_LABEL = "tower.dev/member-uid"
_TOKEN_LABEL_PREFIX = "token.tower.dev/"

# Of one cluster; the oldest finished ones go first. A used token has about 2 KiB with its
# certificate, and a Secret 1 MiB.
MAX_TOKENS = 200

# 1 (2026-11): tokens, record, direct.
FORMAT = 1
# What a ledger of a newer Tower is called; it is left alone.
UNKNOWN_FORMAT = "it was written by a newer Tower: upgrade this server"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """Everything about one cluster name."""

    cluster: ClusterName
    tokens: tuple[TokenRecord, ...] = ()
    record: ClusterRecord | None = None
    direct: DirectMember | None = None
    # UID of the Cluster object that this belongs to. None: there is none yet, or no more. It is no
    # ownerReference: a backup that is restored has other UIDs, and the garbage collector would
    # take every member away.
    owner_uid: str | None = None
    # UID of the Cluster object whose member was removed by an admin: it shall be deleted.
    dismissed_uid: str | None = None
    # Digest of what was last taken from the Secret of a direct connection, so that it is taken
    # again only when that changes, and not after an admin gave another one by the command line.
    taken: str | None = None
    # Of the Secret as it was read; None for one that is not written yet. No part of what it says.
    revision: str | None = dataclasses.field(default=None, compare=False)

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing that anybody would miss."""
        return not (self.tokens or self.record or self.owner_uid or self.dismissed_uid)

    def token(self, token_id: TokenId) -> TokenRecord | None:
        return next((token for token in self.tokens if token.id == token_id), None)

    def with_token(self, token: TokenRecord) -> "Ledger":
        """Put a token in place of that with its id, or behind the others."""
        others = [other for other in self.tokens if other.id != token.id]
        tokens = sorted([*others, token], key=lambda kept: kept.created_at)
        return dataclasses.replace(self, tokens=tuple(tokens))

    def without_tokens(self, token_ids: set[TokenId]) -> "Ledger":
        kept = tuple(token for token in self.tokens if token.id not in token_ids)
        return dataclasses.replace(self, tokens=kept)

    def trimmed(self, now: datetime) -> "Ledger":
        """Forget the oldest finished tokens beyond the limit of one cluster, but for the newest."""
        finished = [
            t.id for t in self.tokens if state_of(t, now) is not TokenState.READY
        ]
        surplus = max(0, len(self.tokens) - MAX_TOKENS)
        return self.without_tokens(set(finished[:surplus])) if surplus else self

    def without_member(self, now: datetime) -> "Ledger":
        """The cluster is removed: its outstanding tokens are revoked, finished ones stay listed."""
        tokens = tuple(
            dataclasses.replace(token, revoked_at=now)
            if state_of(token, now) is TokenState.READY
            else token
            for token in self.tokens
        )
        return dataclasses.replace(
            self,
            tokens=tokens,
            record=None,
            direct=None,
            taken=None,
            owner_uid=None,
            dismissed_uid=self.owner_uid or self.dismissed_uid,
        )


def ledger_name(cluster: ClusterName) -> str:
    """The name of a cluster's Secret."""
    return f"tower-ledger-{cluster}"


def token_selector(token_id: TokenId) -> str:
    """What finds the ledger that has this token."""
    return f"{_TOKEN_LABEL_PREFIX}{token_id}"


def uid_selector(member_uid: str) -> str:
    """What finds the ledger of this member."""
    return f"{_UID_LABEL}={_label_of_uid(member_uid)}"


def secret_of(ledger: Ledger, namespace: str) -> Object:
    """The Secret that says what `ledger` says."""
    document = {
        "format": FORMAT,
        "tokens": [_write(token) for token in ledger.tokens],
        "record": None if ledger.record is None else _write(ledger.record),
        "direct": None if ledger.direct is None else _write(ledger.direct),
        "owner_uid": ledger.owner_uid,
        "dismissed_uid": ledger.dismissed_uid,
        "taken": ledger.taken,
    }
    labels = {
        CLUSTER_LABEL: ledger.cluster,
        **{f"{_TOKEN_LABEL_PREFIX}{token.id}": "" for token in ledger.tokens},
    }
    if ledger.record is not None:
        labels[_UID_LABEL] = _label_of_uid(ledger.record.member_uid)
    metadata: Object = {"labels": labels}
    if ledger.revision is not None:
        metadata["resourceVersion"] = ledger.revision
    text = json.dumps(document, separators=(",", ":")).encode()
    return SECRETS.object(
        namespace,
        ledger_name(ledger.cluster),
        metadata=metadata,
        type=LEDGER_TYPE,
        data={"ledger": base64.b64encode(text).decode()},
    )


def ledger_of(secret: Object) -> Ledger:
    """Read a ledger from its Secret.

    Raises:
        ValueError: If it is damaged, or of a newer Tower. Nothing of it is quoted.
    """
    metadata = secret["metadata"]
    try:
        document = json.loads(base64.b64decode(secret["data"]["ledger"]))
        if document["format"] != FORMAT:
            raise ValueError(UNKNOWN_FORMAT)
        record, direct = document["record"], document["direct"]
        return Ledger(
            cluster=ClusterName(metadata["labels"][CLUSTER_LABEL]),
            tokens=tuple(_read(TokenRecord, token) for token in document["tokens"]),
            record=None if record is None else _read(ClusterRecord, record),
            direct=None if direct is None else _read(DirectMember, direct),
            owner_uid=document["owner_uid"],
            dismissed_uid=document["dismissed_uid"],
            taken=document["taken"],
            revision=metadata["resourceVersion"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error) if str(error) == UNKNOWN_FORMAT else "it is damaged"
        raise ValueError(reason) from None


def _label_of_uid(member_uid: str) -> str:
    """A UID is what the agent says; a label has an alphabet."""
    return hashlib.sha256(member_uid.encode()).hexdigest()[:40]


# Records as JSON: moments as microseconds since 1970, bytes as base64, serial numbers (159 bits)
# as text, sets as sorted lists.

_BYTES = {"verifier": bytes, "issued_certificate": bytes, "kubeconfig": PrivateBytes}
_SETS = {"allow_users", "allow_groups"}
_NUMBERS_AS_TEXT = {"agent_serial"}


def _write(record: Any) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, datetime):
            value = (value - _EPOCH) // timedelta(microseconds=1)
        elif isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        elif isinstance(value, frozenset):
            value = sorted(value)
        elif field.name in _NUMBERS_AS_TEXT and value is not None:
            value = str(value)
        written[field.name] = value
    return written


def _read(kind: Any, written: dict[str, Any]) -> Any:
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        # A field that an earlier release did not write has its default.
        if field.name not in written:
            continue
        value = written[field.name]
        if value is None:
            pass
        elif field.name.endswith("_at"):
            value = _EPOCH + timedelta(microseconds=value)
        elif field.name in _BYTES:
            value = _BYTES[field.name](base64.b64decode(value, validate=True))
        elif field.name in _SETS:
            value = frozenset(value)
        elif field.name in _NUMBERS_AS_TEXT:
            value = int(value)
        fields[field.name] = value
    return kind(**fields)
