"""What a ledger says and how it is written. Pure.

Covered: everything comes back as it was, secrets do not show, labels find it, its owner, damage and
newer formats, earlier formats without a field, the limit of tokens, removal, emptiness.
"""

import base64
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certs.keys import PrivateBytes
from certs.names import parse_cluster_name
from tower_server.kube.resources import Object
from tower_server.membership import ClusterRecord, DirectMember
from tower_server.stores import ledger as ledger_module
from tower_server.stores.ledger import (
    LEDGER_TYPE,
    Ledger,
    ledger_name,
    ledger_of,
    secret_of,
    token_selector,
    uid_selector,
)
from tower_server.tokens import TokenId, TokenRecord

NOW = datetime(2026, 11, 24, 8, 0, 0, 123456, tzinfo=UTC)
ALPHA = parse_cluster_name("alpha")
SECRET = b"a-token-that-is-worth-stealing"


def token(name: str, at: datetime = NOW, **fields: Any) -> TokenRecord:
    return TokenRecord(
        id=TokenId(name),
        cluster=ALPHA,
        verifier=b"\xffv" * 16,
        created_at=at,
        expires_at=at + timedelta(days=1),
        **fields,
    )


USED = token(
    "used", used_at=NOW, used_by_key_pin="sha256:aa", issued_certificate=b"chain"
)
RECORD = ClusterRecord(
    name=ALPHA,
    member_uid="uid / with: odd 'characters'",
    joined_at=NOW,
    agent_serial=2**158 + 1,
    agent_key_pin="sha256:aa",
    agent_version="0.1.0",
    token_id=USED.id,
)
DIRECT = DirectMember(
    cluster=ALPHA,
    member_uid="u",
    kubeconfig=PrivateBytes(SECRET),
    allow_users=frozenset({"b", "a"}),
    allow_groups=frozenset(),
    is_insecure_allowed=True,
    added_at=NOW,
    updated_at=NOW,
)
FULL = Ledger(
    cluster=ALPHA,
    tokens=(USED, token("ready")),
    record=RECORD,
    direct=DIRECT,
    owner_uid="owner",
    dismissed_uid="before",
    taken="digest",
)


def stored(ledger: Ledger, revision: str = "7") -> Object:
    secret = secret_of(ledger, "tower")
    secret["metadata"]["resourceVersion"] = revision
    return secret


@pytest.mark.parametrize(
    "ledger", [FULL, Ledger(cluster=ALPHA), Ledger(cluster=ALPHA, record=DIRECT.record)]
)
def test_it_comes_back_as_it_was(ledger: Ledger) -> None:
    again = ledger_of(stored(ledger))
    assert again == ledger and again.revision == "7"
    # Writing it again is a compare-and-swap.
    assert secret_of(again, "tower")["metadata"]["resourceVersion"] == "7"
    assert isinstance(again.direct.kubeconfig, PrivateBytes) if again.direct else True


def test_its_revision_is_no_part_of_what_it_says() -> None:
    assert dataclasses.replace(FULL, revision="8") == FULL


def test_a_kubeconfig_does_not_show() -> None:
    assert SECRET.decode() not in repr(FULL)


def test_it_is_found_by_type_token_and_member() -> None:
    secret = stored(FULL)
    assert secret["type"] == LEDGER_TYPE
    assert secret["metadata"]["name"] == ledger_name(ALPHA) == "tower-ledger-alpha"
    labels = secret["metadata"]["labels"]
    assert token_selector(USED.id) in labels
    key, _, value = uid_selector(RECORD.member_uid).partition("=")
    assert labels[key] == value and len(value) <= 63


def test_a_restored_backup_is_not_garbage() -> None:
    # Its Cluster has another UID there, and the garbage collector would take it away.
    assert "ownerReferences" not in stored(FULL)["metadata"]


def changed(**fields: Any) -> Object:
    secret = stored(FULL)
    document = json.loads(base64.b64decode(secret["data"]["ledger"]))
    text = json.dumps(document | fields).encode()
    secret["data"]["ledger"] = base64.b64encode(text).decode()
    return secret


def test_one_of_a_newer_tower_is_left_alone() -> None:
    with pytest.raises(ValueError, match="upgrade this server"):
        ledger_of(changed(format=2))


@pytest.mark.parametrize(
    "secret",
    [
        stored(FULL) | {"data": None},
        stored(FULL) | {"data": {"ledger": "!!"}},
        changed(tokens=[{}]),
        changed(direct={"kubeconfig": SECRET.decode()}),
        changed(record="r"),
    ],
)
def test_a_damaged_one_is_refused_and_not_quoted(secret: Object) -> None:
    with pytest.raises(ValueError, match="it is damaged") as caught:
        ledger_of(secret)
    assert SECRET.decode() not in str(caught.value)


def test_a_field_that_an_earlier_release_did_not_write_has_its_default() -> None:
    document = json.loads(base64.b64decode(stored(FULL)["data"]["ledger"]))
    del document["tokens"][1]["revoked_at"]
    (_, ready) = ledger_of(changed(tokens=document["tokens"])).tokens
    assert ready.revoked_at is None


def test_the_oldest_finished_tokens_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_TOKENS", 2)
    minute = timedelta(minutes=1)
    old = dataclasses.replace(token("old", NOW - 3 * minute), revoked_at=NOW)
    ledger = Ledger(cluster=ALPHA)
    for kept in (
        token("ready", NOW - 5 * minute),
        USED,
        old,
        token("new", NOW + minute),
    ):
        ledger = ledger.with_token(kept)
    assert [kept.id for kept in ledger.trimmed(NOW).tokens] == ["ready", "new"]


def test_removal_revokes_what_could_be_used_and_dismisses_the_object() -> None:
    removed = FULL.without_member(NOW)
    assert (removed.record, removed.direct, removed.owner_uid) == (None, None, None)
    assert removed.dismissed_uid == "owner"
    used, ready = removed.tokens
    assert (used, ready.revoked_at) == (USED, NOW)
    # Again: the object is still to be deleted.
    assert removed.without_member(NOW).dismissed_uid == "owner"


def test_one_that_says_nothing_is_empty() -> None:
    assert Ledger(cluster=ALPHA).is_empty
    assert not Ledger(cluster=ALPHA, tokens=(USED,)).is_empty
    assert not Ledger(cluster=ALPHA, owner_uid="x").is_empty
