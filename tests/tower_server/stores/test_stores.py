"""Every store keeps the same promises: one test body, run against each.

Covered: tokens come and go, single use under concurrency, a lost answer's repetition, UID rules,
removal, retention and limits; clusters with a direct connection, their updates and rules.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.keys import PrivateBytes
from certs.names import parse_cluster_name
from tests.fakes.kubernetes_store import new_kubernetes_store
from tower_server import tokens
from tower_server.membership import (
    DirectMember,
    JoinRefused,
    Refusal,
    TokenUse,
    agent_is_current,
)
from tower_server.stores import (
    Store,
    TokenLimitReached,
    kubernetes,
    memory,
    sqlite,
)
from tower_server.stores.memory import MemoryStore
from tower_server.stores.sqlite import SqliteStore
from tower_server.tokens import TokenId, TokenRecord

ALPHA = parse_cluster_name("alpha")
BETA = parse_cluster_name("beta")
START = datetime(2026, 11, 24, 8, 0, 0, 123456, tzinfo=UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def token(
    name: str = "t1", cluster: str = "alpha", at: datetime = START
) -> TokenRecord:
    return TokenRecord(
        id=TokenId(name),
        cluster=parse_cluster_name(cluster),
        verifier=b"v" * 32,
        created_at=at,
        expires_at=at + DAY,
    )


def use(
    name: str = "t1",
    *,
    cluster: str = "alpha",
    uid: str = "uid-a",
    key: str = "sha256:aa",
    serial: int = 2**158 + 1,
    at: datetime = START + MINUTE,
    certificate: bytes = b"chain",
) -> TokenUse:
    return TokenUse(
        token_id=TokenId(name),
        cluster=parse_cluster_name(cluster),
        member_uid=uid,
        agent_version="0.1.0",
        key_pin=key,
        serial=serial,
        certificate=certificate,
        at=at,
    )


def direct(
    cluster: str = "beta",
    *,
    uid: str = "uid-b",
    kubeconfig: bytes = b"kind: Config",
    at: datetime = START,
) -> DirectMember:
    return DirectMember(
        cluster=parse_cluster_name(cluster),
        member_uid=uid,
        kubeconfig=PrivateBytes(kubeconfig),
        allow_users=frozenset({"tower:admin", "jürgen"}),
        allow_groups=frozenset(),
        is_insecure_allowed=False,
        added_at=at,
        updated_at=at,
    )


@pytest.fixture(
    params=["memory", "sqlite", pytest.param("kubernetes", marks=pytest.mark.e2e)]
)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        kept: Store
        match request.param:
            case "memory":
                kept = MemoryStore()
            case "sqlite":
                kept = await SqliteStore.open(tmp_path / "tower.sqlite")
            case _:
                host = request.getfixturevalue("host")
                kept = await stack.enter_async_context(new_kubernetes_store(host))
        yield kept
        await kept.close()
        await kept.close()  # repeating is harmless


async def refusal(store: Store, attempt: TokenUse) -> Refusal:
    with pytest.raises(JoinRefused) as caught:
        await store.use_token(attempt)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return caught.value.code


async def test_a_token_comes_back_as_it_was_kept(store: Store) -> None:
    await store.add_token(token(), START)
    assert await store.get_token(TokenId("t1")) == token()
    assert await store.get_token(TokenId("other")) is None


async def test_tokens_are_listed_oldest_first(store: Store) -> None:
    for name, minutes in (("b", 2), ("c", 3), ("a", 1)):
        await store.add_token(token(name, at=START + minutes * MINUTE), START)
    assert [kept.id for kept in await store.list_tokens()] == ["a", "b", "c"]


async def test_a_second_token_of_the_same_id_is_refused(store: Store) -> None:
    await store.add_token(token(), START)
    with pytest.raises(ValueError, match="already a token t1"):
        await store.add_token(token(cluster="beta"), START)
    assert await store.list_tokens() == [token()]


async def test_a_join_uses_the_token_and_makes_the_cluster(store: Store) -> None:
    await store.add_token(token(), START)
    assert await store.use_token(use()) == b"chain"
    kept = await store.get_token(TokenId("t1"))
    assert kept is not None
    assert (kept.used_at, kept.used_by_key_pin) == (START + MINUTE, "sha256:aa")
    cluster = await store.get_cluster(ALPHA)
    assert cluster is not None
    assert await store.list_clusters() == [cluster]
    assert cluster.member_uid == "uid-a"
    assert cluster.joined_at == START + MINUTE
    assert agent_is_current(cluster, key_pin="sha256:aa")


async def test_of_many_concurrent_joins_with_one_token_one_succeeds(
    store: Store,
) -> None:
    await store.add_token(token(), START)
    attempts = [
        use(key=f"sha256:{n:02x}", serial=n + 1, certificate=b"chain %d" % n)
        for n in range(50)
    ]
    outcomes = await asyncio.gather(
        *(store.use_token(attempt) for attempt in attempts), return_exceptions=True
    )
    won = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, bytes)]
    assert len(won) == 1
    lost = [outcome for outcome in outcomes if isinstance(outcome, JoinRefused)]
    assert {refused.code for refused in lost} == {Refusal.TOKEN_USED} and len(
        lost
    ) == 49
    cluster = await store.get_cluster(ALPHA)
    assert cluster is not None and cluster.agent_serial == won[0] + 1


async def test_the_same_key_gets_the_same_certificate_for_ten_minutes(
    store: Store,
) -> None:
    await store.add_token(token(), START)
    await store.use_token(use(certificate=b"first", serial=1))
    again = use(certificate=b"second", serial=2, at=START + 11 * MINUTE)
    assert await store.use_token(again) == b"first"
    cluster = await store.get_cluster(ALPHA)
    assert cluster is not None and cluster.agent_serial == 1
    late = dataclasses.replace(again, at=again.at + timedelta(seconds=1))
    assert await refusal(store, late) is Refusal.TOKEN_USED


async def test_another_key_does_not_get_the_certificate(store: Store) -> None:
    await store.add_token(token(), START)
    await store.use_token(use())
    assert await refusal(store, use(key="sha256:bb")) is Refusal.TOKEN_USED


@pytest.mark.parametrize(
    ("attempt", "code"),
    [
        (use("unknown"), Refusal.TOKEN_WRONG),
        (use(at=START + DAY), Refusal.TOKEN_EXPIRED),
        (use(cluster="beta"), Refusal.TOKEN_OTHER_CLUSTER),
    ],
)
async def test_an_unusable_token_is_refused_and_nothing_is_written(
    store: Store, attempt: TokenUse, code: Refusal
) -> None:
    await store.add_token(token(), START)
    assert await refusal(store, attempt) is code
    assert await store.list_tokens() == [token()]
    assert await store.list_clusters() == []


async def test_a_revoked_token_is_refused(store: Store) -> None:
    await store.add_token(token(), START)
    revoked = await store.revoke_token(TokenId("t1"), START)
    assert revoked == dataclasses.replace(token(), revoked_at=START)
    assert await store.revoke_token(TokenId("t1"), START + MINUTE) == revoked
    assert await store.revoke_token(TokenId("other"), START) is None
    assert await refusal(store, use()) is Refusal.TOKEN_REVOKED


async def test_revoking_a_used_token_ends_its_repetition(store: Store) -> None:
    await store.add_token(token(), START)
    await store.use_token(use())
    await store.revoke_token(TokenId("t1"), START + MINUTE)
    assert await refusal(store, use()) is Refusal.TOKEN_REVOKED


async def test_a_name_that_another_member_has_is_refused(store: Store) -> None:
    await store.add_token(token("t1"), START)
    await store.add_token(token("t2"), START)
    await store.use_token(use("t1", uid="uid-a"))
    assert await refusal(store, use("t2", uid="uid-b")) is Refusal.NAME_TAKEN
    kept = await store.get_token(TokenId("t2"))
    assert kept is not None and kept.used_at is None


async def test_a_member_under_a_second_name_is_refused(store: Store) -> None:
    await store.add_token(token("t1"), START)
    await store.add_token(token("t2", "beta"), START)
    await store.use_token(use("t1", uid="uid-a"))
    attempt = use("t2", cluster="beta", uid="uid-a")
    assert await refusal(store, attempt) is Refusal.MEMBER_JOINED_ELSEWHERE
    assert await store.get_cluster(BETA) is None


async def test_a_rejoin_replaces_the_certificate(store: Store) -> None:
    await store.add_token(token("t1"), START)
    await store.add_token(token("t2"), START)
    await store.use_token(use("t1", key="sha256:aa", serial=1))
    await store.use_token(use("t2", key="sha256:bb", serial=2))
    cluster = await store.get_cluster(ALPHA)
    assert agent_is_current(cluster, key_pin="sha256:bb")
    assert not agent_is_current(cluster, key_pin="sha256:aa")
    # The first agent's repetition does not take the name back.
    assert await refusal(store, use("t1", key="sha256:aa")) is Refusal.TOKEN_USED


async def test_removing_a_cluster_frees_its_name_and_its_member(store: Store) -> None:
    await store.add_token(token("t1"), START)
    await store.use_token(use("t1", uid="uid-a"))
    removed = await store.remove_cluster(ALPHA, START + MINUTE)
    assert removed is not None and removed.name == ALPHA
    assert await store.remove_cluster(ALPHA, START + MINUTE) is None
    assert await refusal(store, use("t1", uid="uid-a")) is Refusal.TOKEN_USED
    for name, cluster, uid in (("t2", "alpha", "uid-b"), ("t3", "beta", "uid-a")):
        await store.add_token(token(name, cluster), START)
        await store.use_token(use(name, cluster=cluster, uid=uid))


async def test_removing_a_cluster_revokes_its_outstanding_tokens(store: Store) -> None:
    await store.add_token(token("t1"), START)
    await store.add_token(token("spare"), START)
    await store.add_token(token("other", "beta"), START)
    await store.use_token(use("t1"))
    await store.remove_cluster(ALPHA, START + MINUTE)
    assert await refusal(store, use("spare")) is Refusal.TOKEN_REVOKED
    await store.use_token(use("other", cluster="beta", uid="uid-b"))


async def test_finished_tokens_are_forgotten_after_a_week(store: Store) -> None:
    await store.add_token(token("expires"), START)
    await store.add_token(token("lasts", at=START + 7 * DAY), START + 7 * DAY)
    assert await store.get_token(TokenId("expires")) is not None
    later = START + 8 * DAY + MINUTE
    await store.add_token(token("new", at=later), later)
    assert [kept.id for kept in await store.list_tokens()] == ["lasts", "new"]


async def test_of_too_many_finished_tokens_the_oldest_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_FINISHED_TOKENS", 2)
    for n in range(4):
        await store.add_token(token(f"t{n}"), START)
        await store.revoke_token(TokenId(f"t{n}"), START + n * MINUTE)
    await store.add_token(token("new"), START + 5 * MINUTE)
    assert {kept.id for kept in await store.list_tokens()} == {"t2", "t3", "new"}


async def test_outstanding_tokens_are_limited(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (memory, sqlite, kubernetes):
        monkeypatch.setattr(module, "MAX_OUTSTANDING_TOKENS", 2)
    await store.add_token(token("t1"), START)
    await store.add_token(token("t2"), START)
    with pytest.raises(TokenLimitReached, match="revoke some"):
        await store.add_token(token("t3"), START)
    await store.revoke_token(TokenId("t1"), START)
    await store.add_token(token("t3"), START)


# -- direct connections ----------------------------------------------------------------------


async def test_a_direct_cluster_comes_back_as_it_was_kept(store: Store) -> None:
    await store.add_direct(direct())
    assert await store.get_direct(BETA) == direct()
    assert await store.list_direct() == [direct()]
    assert await store.get_direct(ALPHA) is None


async def test_a_direct_cluster_is_listed_among_the_others(store: Store) -> None:
    await store.add_token(token(), START)
    await store.use_token(use())
    await store.add_direct(direct())
    alpha, beta = await store.list_clusters()
    assert (alpha.name, alpha.is_direct) == (ALPHA, False)
    assert (beta.name, beta.is_direct) == (BETA, True)
    assert beta == await store.get_cluster(BETA) == direct().record
    assert await store.get_direct(ALPHA) is None
    # No certificate is that of its agent: it has none.
    assert not agent_is_current(beta, key_pin="sha256:aa")


async def test_a_kubeconfig_shows_itself_to_nobody(store: Store) -> None:
    await store.add_direct(direct(kubeconfig=b"token: secret"))
    assert "secret" not in repr(await store.get_direct(BETA))


async def direct_refusal(store: Store, member: DirectMember) -> Refusal:
    before = await store.list_clusters(), await store.list_direct()
    with pytest.raises(JoinRefused) as caught:
        await store.add_direct(member)
    assert (await store.list_clusters(), await store.list_direct()) == before
    return caught.value.code


async def test_a_direct_cluster_follows_the_rules_of_names_and_uids(
    store: Store,
) -> None:
    await store.add_token(token(), START)
    await store.use_token(use())
    await store.add_direct(direct())
    other_name, other_member = direct("gamma"), direct("beta", uid="uid-c")
    assert await direct_refusal(store, other_name) is Refusal.MEMBER_JOINED_ELSEWHERE
    assert await direct_refusal(store, other_member) is Refusal.NAME_TAKEN
    assert await direct_refusal(store, direct()) is Refusal.NAME_TAKEN
    joined = direct("gamma", uid="uid-a")
    assert await direct_refusal(store, joined) is Refusal.MEMBER_JOINED_ELSEWHERE
    joined = direct("alpha", uid="uid-a")
    assert await direct_refusal(store, joined) is Refusal.CONNECTED_OTHERWISE


async def test_an_agent_does_not_take_over_a_direct_cluster(store: Store) -> None:
    await store.add_direct(direct())
    await store.add_token(token(cluster="beta"), START)
    assert (
        await refusal(store, use(cluster="beta", uid="uid-b"))
        is Refusal.CONNECTED_OTHERWISE
    )
    await store.add_token(token("t2", "gamma"), START)
    assert (
        await refusal(store, use("t2", cluster="gamma", uid="uid-b"))
        is Refusal.MEMBER_JOINED_ELSEWHERE
    )
    ready = await store.get_token(TokenId("t1"))
    assert ready is not None and ready.used_at is None


async def test_a_kubeconfig_is_replaced_and_the_cluster_stays(store: Store) -> None:
    await store.add_direct(direct())
    rotated = direct(kubeconfig=b"rotated", at=START + DAY)
    kept = dataclasses.replace(rotated, added_at=START)
    assert await store.update_direct(rotated) == kept
    assert await store.list_direct() == [kept]
    assert await store.get_cluster(BETA) == direct().record


async def test_a_kubeconfig_of_another_member_does_not_replace(store: Store) -> None:
    await store.add_direct(direct())
    with pytest.raises(JoinRefused, match="another cluster than 'beta'") as caught:
        await store.update_direct(direct(uid="uid-x", kubeconfig=b"other"))
    assert caught.value.code is Refusal.NAME_TAKEN
    assert await store.list_direct() == [direct()]


async def test_only_a_direct_cluster_has_a_kubeconfig_to_replace(store: Store) -> None:
    await store.add_token(token(), START)
    await store.use_token(use())
    assert await store.update_direct(direct()) is None
    with pytest.raises(JoinRefused) as caught:
        await store.update_direct(direct("alpha", uid="uid-a"))
    assert caught.value.code is Refusal.CONNECTED_OTHERWISE
    assert await store.list_direct() == []


async def test_removing_a_direct_cluster_forgets_its_kubeconfig(store: Store) -> None:
    await store.add_direct(direct())
    assert await store.remove_cluster(BETA, START) == direct().record
    assert await store.list_direct() == await store.list_clusters() == []
    await store.add_direct(direct("gamma"))


async def test_of_many_adding_one_member_one_succeeds(store: Store) -> None:
    members = [direct(f"name-{n}") for n in range(20)]
    outcomes = await asyncio.gather(
        *(store.add_direct(member) for member in members), return_exceptions=True
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert len(await store.list_direct()) == 1
