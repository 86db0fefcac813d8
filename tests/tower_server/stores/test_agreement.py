"""Whatever is asked in whatever order, every store answers as the reference does.

Covered: random sequences of all verbs, run against two at a time, with every answer, refusal and the final
content compared.
"""

import asyncio
import itertools
import os
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from certs.keys import PrivateBytes
from certs.names import parse_cluster_name
from tests.fakes.kubernetes_store import new_kubernetes_store
from tests.testbed.controlplane import ControlPlane
from tower_server.membership import DirectMember, JoinRefused, TokenUse
from tower_server.stores import Store
from tower_server.stores.memory import MemoryStore
from tower_server.stores.sqlite import SqliteStore
from tower_server.tokens import TokenId, TokenRecord

START = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)

names = st.sampled_from(["alpha", "beta"]).map(parse_cluster_name)
token_ids = st.sampled_from(["t1", "t2", "t3"]).map(TokenId)
# Minutes between two verbs: nothing, within and beyond the resend window, beyond a token's life.
pauses = st.sampled_from([0, 1, 9, 12, 24 * 60, 8 * 24 * 60])

Step = Callable[[Store, datetime, int], Awaitable[object]]


def adding(token_id: TokenId, cluster: str) -> Step:
    def step(store: Store, now: datetime, _number: int) -> Awaitable[object]:
        record = TokenRecord(
            id=token_id,
            cluster=parse_cluster_name(cluster),
            verifier=b"v" * 32,
            created_at=now,
            expires_at=now + timedelta(days=1),
        )
        return store.add_token(record, now)

    return step


def using(token_id: TokenId, cluster: str, uid: str, key: str) -> Step:
    def step(store: Store, now: datetime, number: int) -> Awaitable[object]:
        use = TokenUse(
            token_id=token_id,
            cluster=parse_cluster_name(cluster),
            member_uid=uid,
            agent_version="0.1.0",
            key_pin=key,
            serial=2**150 + number,
            certificate=b"chain %d" % number,
            at=now,
        )
        return store.use_token(use)

    return step


def directly(cluster: str, uid: str, *, is_new: bool) -> Step:
    def step(store: Store, now: datetime, number: int) -> Awaitable[object]:
        member = DirectMember(
            cluster=parse_cluster_name(cluster),
            member_uid=uid,
            kubeconfig=PrivateBytes(b"kubeconfig %d" % number),
            allow_users=frozenset({f"user-{number}"}),
            allow_groups=frozenset(),
            is_insecure_allowed=number % 2 == 0,
            added_at=now,
            updated_at=now,
        )
        return store.add_direct(member) if is_new else store.update_direct(member)

    return step


steps = st.one_of(
    st.builds(directly, names, st.sampled_from(["u1", "u2"]), is_new=st.booleans()),
    st.builds(lambda name: lambda store, now, _: store.get_direct(name), names),
    st.builds(adding, token_ids, names),
    st.builds(
        using,
        token_ids,
        names,
        st.sampled_from(["u1", "u2"]),
        st.sampled_from(["k1", "k2"]),
    ),
    st.builds(
        lambda token: lambda store, now, _: store.revoke_token(token, now), token_ids
    ),
    st.builds(
        lambda name: lambda store, now, _: store.remove_cluster(name, now), names
    ),
    st.builds(lambda name: lambda store, now, _: store.get_cluster(name), names),
    st.builds(lambda token: lambda store, now, _: store.get_token(token), token_ids),
)


plans = st.lists(st.tuples(pauses, steps), max_size=25)


@settings(max_examples=60, deadline=None)
@given(plans)
def test_the_sqlite_store_answers_alike(plan: list[tuple[int, Step]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as directory:
            sqlite = await SqliteStore.open(Path(directory) / "tower.sqlite")
            try:
                await compare(plan, sqlite)
            finally:
                await sqlite.close()
            assert os.listdir(directory) == ["tower.sqlite"]

    asyncio.run(run())


@pytest.mark.e2e
@settings(max_examples=25, deadline=None, phases=[Phase.generate])
@given(plans)
def test_the_kubernetes_store_answers_alike(
    host: ControlPlane, plan: list[tuple[int, Step]]
) -> None:
    async def run() -> None:
        async with new_kubernetes_store(host) as store:
            await compare(plan, store)
            # What another server reads of it is the same.
            async with new_kubernetes_store(host, store.namespace) as other:
                assert await other.list_tokens() == await store.list_tokens()
                assert await other.list_clusters() == await store.list_clusters()
                assert await other.list_direct() == await store.list_direct()

    asyncio.run(run())


async def compare(plan: list[tuple[int, Step]], store: Store) -> None:
    reference = MemoryStore()
    now = START
    for number, (minutes, step) in zip(itertools.count(), plan, strict=False):
        # Never the same moment twice, so that the order of tokens is defined.
        now += timedelta(minutes=minutes, microseconds=1)
        expected = await outcome(step(reference, now, number))
        assert await outcome(step(store, now, number)) == expected
    assert await store.list_tokens() == await reference.list_tokens()
    assert await store.list_clusters() == await reference.list_clusters()
    assert await store.list_direct() == await reference.list_direct()


async def outcome(verb: Awaitable[object]) -> object:
    try:
        return await verb
    except (JoinRefused, ValueError) as error:
        return type(error), str(error)
