"""What only the SQLite store promises: its file, and what happens when that fails.

Covered: survives a restart, file modes, two processes, disk full, locked, damaged, older and newer
schema, kubeconfigs overwritten; after each failure nothing is half-written.
"""

import asyncio
import contextlib
import dataclasses
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.keys import PrivateBytes
from certs.names import parse_cluster_name
from tower_server.membership import DirectMember, JoinRefused, TokenUse
from tower_server.stores import StoreUnavailable, sqlite_file
from tower_server.stores.sqlite import SqliteStore
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


def use(key: str = "sha256:aa", certificate: bytes = b"chain") -> TokenUse:
    return TokenUse(
        token_id=TOKEN.id,
        cluster=ALPHA,
        member_uid="uid",
        agent_version="0.1.0",
        key_pin=key,
        serial=7,
        certificate=certificate,
        at=NOW,
    )


SECRET = b"a-token-that-is-worth-stealing"
DIRECT = DirectMember(
    cluster=parse_cluster_name("beta"),
    member_uid="uid-b",
    kubeconfig=PrivateBytes(SECRET),
    allow_users=frozenset({"tower:admin"}),
    allow_groups=frozenset({"a", "b"}),
    is_insecure_allowed=True,
    added_at=NOW,
    updated_at=NOW,
)

# What 0.1.0 wrote into an empty file, and a row of each table.
VERSION_1 = """
CREATE TABLE tokens (id TEXT PRIMARY KEY, cluster TEXT NOT NULL, verifier BLOB NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, used_at INTEGER, used_by_key_pin TEXT,
    revoked_at INTEGER, issued_certificate BLOB) STRICT;
CREATE TABLE clusters (name TEXT PRIMARY KEY, member_uid TEXT NOT NULL UNIQUE,
    agent_serial TEXT NOT NULL, agent_key_pin TEXT NOT NULL, agent_version TEXT NOT NULL,
    joined_at INTEGER NOT NULL, token_id TEXT NOT NULL) STRICT;
INSERT INTO tokens VALUES ('t1', 'alpha', x'76', 1795507200000000, 1795593600000000,
    1795507200000000, 'sha256:aa', NULL, x'636861696e');
INSERT INTO clusters VALUES ('alpha', 'uid', '7', 'sha256:aa', '0.1.0', 1795507200000000, 't1');
PRAGMA user_version = 1;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tower.sqlite"


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.close()


async def test_everything_survives_a_restart(path: Path) -> None:
    async with opened(path) as store:
        await store.add_token(TOKEN, NOW)
        await store.use_token(use())
        await store.add_direct(DIRECT)
        before = await store.list_tokens(), await store.list_clusters()
    async with opened(path) as store:
        assert (await store.list_tokens(), await store.list_clusters()) == before
        assert await store.list_direct() == [DIRECT]


async def test_all_its_files_are_for_the_owner_only(path: Path) -> None:
    async with opened(path) as store:
        await store.add_token(TOKEN, NOW)
        files = list(path.parent.iterdir())
        assert {file.name for file in files} >= {path.name, f"{path.name}-wal"}
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


async def test_a_file_that_others_can_read_is_refused(path: Path) -> None:
    path.touch(0o644)
    path.chmod(0o644)
    with pytest.raises(StoreUnavailable, match="chmod 600"):
        await SqliteStore.open(path)


async def test_a_symbolic_link_is_refused(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await SqliteStore.open(path)
    assert not (tmp_path / "elsewhere").exists()


async def test_two_stores_on_one_file_agree_who_used_a_token(path: Path) -> None:
    async with opened(path) as first, opened(path) as second:
        await first.add_token(TOKEN, NOW)
        outcomes = await asyncio.gather(
            *(
                store.use_token(use(key=f"sha256:{n:02x}"))
                for n in range(10)
                for store in (first, second)
                if (n % 2 == 0) == (store is first)
            ),
            return_exceptions=True,
        )
    assert sum(isinstance(outcome, bytes) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, JoinRefused) for outcome in outcomes) == 9


async def test_a_full_disk_fails_the_join_whole(path: Path) -> None:
    async with opened(path) as store:
        await store.add_token(TOKEN, NOW)
        await limit_pages(store)
        with pytest.raises(StoreUnavailable, match=r"disk .* is full: make room"):
            await store.use_token(use(certificate=b"c" * 100_000))
        # Neither of the two rows was written, and the store goes on working.
        assert await store.list_tokens() == [TOKEN]
        assert await store.list_clusters() == []
        assert await store.use_token(use()) == b"chain"


async def limit_pages(store: SqliteStore) -> None:
    """Let the file grow no further: SQLite then answers as on a full disk."""

    def limit() -> None:
        assert store._connection is not None
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")

    await store._in_thread(limit)


async def test_a_locked_file_is_said_and_reading_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "LOCK_TIMEOUT_SECONDS", 0.05)
    async with opened(path) as store:
        await store.add_token(TOKEN, NOW)
        other = sqlite3.connect(path, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                await store.use_token(use())
            assert await store.list_tokens() == [TOKEN]
        finally:
            other.close()
        assert await store.use_token(use()) == b"chain"


@pytest.mark.parametrize(
    "content", [b"not a database, not at all" * 50, b"SQLite format 3\0"]
)
async def test_a_damaged_file_is_said_and_left_as_it_is(
    path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(
        StoreUnavailable, match="damaged: .* restore the file from a backup"
    ):
        await SqliteStore.open(path)
    assert path.read_bytes() == content


async def test_a_file_of_the_first_schema_is_brought_up_to_date(path: Path) -> None:
    older = sqlite3.connect(path)
    older.executescript(VERSION_1)
    older.close()
    path.chmod(0o600)
    for _ in range(2):  # the second time there is nothing to do
        async with opened(path) as store:
            (token,) = await store.list_tokens()
            assert (token.id, token.used_at) == ("t1", NOW)
            (cluster,) = await store.list_clusters()
            assert (cluster.name, cluster.agent_serial) == (ALPHA, 7)
            assert (cluster.is_direct, cluster.joined_at) == (False, NOW)
            assert await store.list_direct() == []
    async with opened(path) as store:
        await store.add_direct(DIRECT)
        assert len(await store.list_clusters()) == 2


@pytest.mark.parametrize("ending", ["replaced", "removed"])
async def test_of_a_kubeconfig_that_is_gone_nothing_stays_in_the_file(
    path: Path, ending: str
) -> None:
    async with opened(path) as store:
        await store.add_direct(DIRECT)
        if ending == "removed":
            await store.remove_cluster(DIRECT.cluster, NOW)
        else:
            other = dataclasses.replace(DIRECT, kubeconfig=PrivateBytes(b"other"))
            await store.update_direct(other)
    assert SECRET not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_a_file_of_a_newer_tower_is_refused(path: Path) -> None:
    async with opened(path):
        pass
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION + 1}")
    other.close()
    with pytest.raises(StoreUnavailable, match="newer Tower: upgrade"):
        await SqliteStore.open(path)


async def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="directory exists"):
        await SqliteStore.open(tmp_path / "nowhere" / "tower.sqlite")
