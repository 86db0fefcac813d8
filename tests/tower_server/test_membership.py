"""The rules of a join as pure decisions; how stores apply them is in stores/test_stores.py.

Covered: each refusal's sentence has its remedy, precedence, and which certificate is current; the
same for direct connections, and that neither kind takes over the other.
"""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from certs.keys import PrivateBytes
from certs.names import parse_cluster_name
from tower_server.membership import (
    ClusterRecord,
    DirectMember,
    JoinRefused,
    Refusal,
    TokenUse,
    agent_is_current,
    decide_direct,
    decide_direct_update,
    decide_join,
    refuse_unusable,
)
from tower_server.tokens import TokenId, TokenRecord

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
ALPHA = parse_cluster_name("alpha")
TOKEN = TokenRecord(
    id=TokenId("t1"),
    cluster=ALPHA,
    verifier=b"v" * 32,
    created_at=NOW,
    expires_at=NOW + timedelta(days=1),
)
USE = TokenUse(
    token_id=TOKEN.id,
    cluster=ALPHA,
    member_uid="uid-a",
    agent_version="0.1.0",
    key_pin="sha256:aa",
    serial=7,
    certificate=b"new",
    at=NOW,
)
CLUSTER = ClusterRecord(
    name=ALPHA,
    member_uid="uid-a",
    agent_serial=7,
    agent_key_pin="sha256:aa",
    agent_version="0.1.0",
    joined_at=NOW,
    token_id=TOKEN.id,
)
USED = dataclasses.replace(
    TOKEN, used_at=NOW, used_by_key_pin="sha256:aa", issued_certificate=b"old"
)


DIRECT = DirectMember(
    cluster=ALPHA,
    member_uid="uid-a",
    kubeconfig=PrivateBytes(b"secret"),
    allow_users=frozenset({"tower:admin"}),
    allow_groups=frozenset(),
    is_insecure_allowed=False,
    added_at=NOW,
    updated_at=NOW,
)


def test_a_first_join_is_recorded() -> None:
    assert decide_join(USE, token=TOKEN, named=None, same_uid=None) is None


def test_a_rejoin_of_the_same_member_is_recorded() -> None:
    assert decide_join(USE, token=TOKEN, named=CLUSTER, same_uid=CLUSTER) is None


def test_a_repetition_gets_the_earlier_certificate() -> None:
    assert decide_join(USE, token=USED, named=CLUSTER, same_uid=CLUSTER) == b"old"


@pytest.mark.parametrize(
    "named",
    [
        None,
        dataclasses.replace(CLUSTER, token_id=TokenId("t2")),
        dataclasses.replace(CLUSTER, member_uid="uid-b"),
    ],
)
def test_a_repetition_does_not_bring_back_what_has_changed(
    named: ClusterRecord | None,
) -> None:
    with pytest.raises(JoinRefused) as caught:
        decide_join(USE, token=USED, named=named, same_uid=None)
    assert caught.value.code is Refusal.TOKEN_USED


@pytest.mark.parametrize(
    ("token", "named", "same_uid", "code", "remedy"),
    [
        (None, None, None, Refusal.TOKEN_WRONG, "tower token create"),
        (
            dataclasses.replace(TOKEN, cluster=parse_cluster_name("beta")),
            None,
            None,
            Refusal.TOKEN_OTHER_CLUSTER,
            "tower token create alpha",
        ),
        (
            dataclasses.replace(TOKEN, revoked_at=NOW),
            None,
            None,
            Refusal.TOKEN_REVOKED,
            "tower token create alpha",
        ),
        (
            dataclasses.replace(TOKEN, expires_at=NOW),
            None,
            None,
            Refusal.TOKEN_EXPIRED,
            "tower token create alpha",
        ),
        (
            TOKEN,
            dataclasses.replace(CLUSTER, member_uid="uid-b"),
            None,
            Refusal.NAME_TAKEN,
            "tower cluster remove alpha",
        ),
        (
            TOKEN,
            None,
            dataclasses.replace(CLUSTER, name=parse_cluster_name("beta")),
            Refusal.MEMBER_JOINED_ELSEWHERE,
            "tower cluster remove beta",
        ),
    ],
)
def test_each_refusal_names_its_remedy(
    token: TokenRecord | None,
    named: ClusterRecord | None,
    same_uid: ClusterRecord | None,
    code: Refusal,
    remedy: str,
) -> None:
    with pytest.raises(JoinRefused) as caught:
        decide_join(USE, token=token, named=named, same_uid=same_uid)
    assert caught.value.code is code
    assert remedy in str(caught.value)


def test_a_used_token_passes_the_first_look_only_for_its_own_key() -> None:
    refuse_unusable(USED, NOW, resend_key_pin="sha256:aa")
    with pytest.raises(JoinRefused):
        refuse_unusable(USED, NOW, resend_key_pin="sha256:bb")
    with pytest.raises(JoinRefused):
        refuse_unusable(USED, NOW)


@pytest.mark.parametrize(
    ("record", "key_pin", "current"),
    [
        (CLUSTER, "sha256:aa", True),
        (CLUSTER, "sha256:bb", False),
        (DIRECT.record, "sha256:aa", False),
        (None, "sha256:aa", False),
    ],
)
def test_only_the_latest_key_is_current(
    record: ClusterRecord | None, key_pin: str, current: bool
) -> None:
    assert agent_is_current(record, key_pin=key_pin) is current


def test_a_direct_connection_needs_a_free_name_and_a_free_member() -> None:
    decide_direct(DIRECT, named=None, same_uid=None)
    decide_direct_update(DIRECT, named=DIRECT.record)


@pytest.mark.parametrize(
    ("named", "same_uid", "code", "remedy"),
    [
        (DIRECT.record, DIRECT.record, Refusal.NAME_TAKEN, "set-kubeconfig alpha"),
        (CLUSTER, CLUSTER, Refusal.CONNECTED_OTHERWISE, "tower cluster remove alpha"),
        (
            dataclasses.replace(CLUSTER, member_uid="uid-b"),
            None,
            Refusal.NAME_TAKEN,
            "tower cluster remove alpha",
        ),
        (
            None,
            dataclasses.replace(CLUSTER, name=parse_cluster_name("beta")),
            Refusal.MEMBER_JOINED_ELSEWHERE,
            "tower cluster remove beta",
        ),
    ],
)
def test_a_refused_direct_connection_names_its_remedy(
    named: ClusterRecord | None,
    same_uid: ClusterRecord | None,
    code: Refusal,
    remedy: str,
) -> None:
    with pytest.raises(JoinRefused) as caught:
        decide_direct(DIRECT, named=named, same_uid=same_uid)
    assert caught.value.code is code
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("named", "code", "words"),
    [
        (CLUSTER, Refusal.CONNECTED_OTHERWISE, "through its agent"),
        (
            dataclasses.replace(DIRECT.record, member_uid="uid-b"),
            Refusal.NAME_TAKEN,
            "leads to another cluster",
        ),
    ],
)
def test_a_refused_update_says_why(
    named: ClusterRecord, code: Refusal, words: str
) -> None:
    with pytest.raises(JoinRefused, match=words) as caught:
        decide_direct_update(DIRECT, named=named)
    assert caught.value.code is code


def test_a_join_does_not_take_over_a_direct_connection() -> None:
    with pytest.raises(JoinRefused, match="tower cluster remove alpha") as caught:
        decide_join(USE, token=TOKEN, named=DIRECT.record, same_uid=DIRECT.record)
    assert caught.value.code is Refusal.CONNECTED_OTHERWISE
