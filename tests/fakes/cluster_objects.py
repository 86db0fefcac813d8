"""Cluster objects, ledgers and facts for the pure tests of the controllers."""

from datetime import UTC, datetime, timedelta
from typing import Any

from certs.names import ClusterName, parse_cluster_name
from tower_server.controllers.objects import (
    FINALIZER,
    ClusterView,
    SecretView,
    cluster_of,
)
from tower_server.membership import ClusterRecord
from tower_server.stores.ledger import Ledger
from tower_server.tokens import TokenId, TokenRecord

__all__ = ["ALPHA", "NOW", "cluster", "invited", "join_view", "ledger", "token"]

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
ALPHA = parse_cluster_name("alpha")


def cluster(
    *,
    finalizers: tuple[str, ...] = (FINALIZER,),
    is_deleting: bool = False,
    uid: str = "uid-1",
    status: dict[str, Any] | None = None,
    **spec: Any,
) -> ClusterView:
    """A Cluster named alpha, as the apiserver gives it."""
    metadata: dict[str, Any] = {
        "name": "alpha",
        "uid": uid,
        "resourceVersion": "7",
        "generation": 1,
        "finalizers": list(finalizers),
    }
    if is_deleting:
        metadata["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    spec = {"connection": {"type": "proxy"}, **spec}
    view = cluster_of({"metadata": metadata, "spec": spec, "status": status or {}})
    assert view is not None
    return view


def token(
    name: str = "tok1", expires_in: timedelta = timedelta(hours=24)
) -> TokenRecord:
    return TokenRecord(
        id=TokenId(name),
        cluster=ALPHA,
        verifier=b"v" * 32,
        created_at=NOW - timedelta(hours=1),
        expires_at=NOW + expires_in,
    )


def ledger(
    *,
    joined: bool = False,
    direct: bool = False,
    owner_uid: str | None = "uid-1",
    tokens: tuple[TokenRecord, ...] = (),
    **fields: Any,
) -> Ledger:
    record: ClusterRecord | None = None
    if joined or direct:
        record = ClusterRecord(
            name=ClusterName(ALPHA),
            member_uid="member-uid",
            joined_at=NOW - timedelta(days=1),
            agent_serial=None if direct else 5,
            agent_key_pin=None if direct else "sha256:aa",
            agent_version=None if direct else "0.1.0",
            token_id=None if direct else TokenId("tok0"),
        )
    return Ledger(
        cluster=ALPHA, record=record, owner_uid=owner_uid, tokens=tokens, **fields
    )


def join_view(**fields: Any) -> SecretView:
    values: dict[str, Any] = {
        "name": "tower-join-alpha",
        "token_id": "tok1",
        "fingerprint": "f",
        "owner_uid": "uid-1",
        "cluster": "alpha",
        "data": {},
    }
    return SecretView(**values | fields)


def invited() -> dict[str, Any]:
    """The fields of `Observed` for a cluster that waits for its agent and needs nothing."""
    return {
        "cluster": cluster(),
        "ledger": ledger(tokens=(token(),)),
        "join": join_view(),
        "fingerprint": "f",
    }
