"""The default store: one SQLite file in the state directory.

One connection, used by one thread that the store owns, so a slow disk never holds up the event
loop. Every verb that writes is one transaction that takes the write lock first: verbs of two
processes on one file (a replaced server that still drains, say) wait for each other.

Moments are kept as microseconds since 1970 (UTC), serial numbers as text (they have 159 bits), names
to act as as JSON lists.
"""

import asyncio
import dataclasses
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from certs.keys import PrivateBytes
from certs.names import ClusterName
from tower_server.membership import (
    ClusterRecord,
    DirectMember,
    TokenUse,
    decide_direct,
    decide_direct_update,
    decide_join,
)
from tower_server.stores import TokenLimitReached
from tower_server.stores.sqlite_file import committed, connect, explained
from tower_server.tokens import (
    MAX_OUTSTANDING_TOKENS,
    TokenId,
    TokenRecord,
    disposable_tokens,
)

__all__ = ["SqliteStore"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class SqliteStore:
    """Keeps everything in one file. See `tower_server.stores.Store` for the verbs."""

    def __init__(self, path: Path) -> None:
        """Use `SqliteStore.open`; this opens nothing yet."""
        self.path = path
        # Its single thread is the only one that touches the connection.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tower-store")
        # Set by `open`, None again after `close`.
        self._connection: sqlite3.Connection | None = None

    @classmethod
    async def open(cls, path: Path) -> "SqliteStore":
        """Open the file, or make it (mode 0600), and bring its schema up to date.

        Raises:
            StoreUnavailable: If the file is damaged, readable by others, of a newer Tower, ...
        """
        store = cls(path)
        try:
            store._connection = await store._in_thread(lambda: connect(path))
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._in_thread(connection.close)
        self._thread.shutdown(wait=False)

    async def add_token(self, token: TokenRecord, now: datetime) -> None:
        await self._transaction(_add_token, token, now)

    async def get_token(self, token_id: TokenId) -> TokenRecord | None:
        return await self._query(_get_token, token_id)

    async def list_tokens(self) -> list[TokenRecord]:
        return await self._query(_list_tokens)

    async def revoke_token(
        self, token_id: TokenId, now: datetime
    ) -> TokenRecord | None:
        return await self._transaction(_revoke_token, token_id, now)

    async def use_token(self, use: TokenUse) -> bytes:
        return await self._transaction(_use_token, use)

    async def add_direct(self, member: DirectMember) -> None:
        await self._transaction(_add_direct, member)

    async def update_direct(self, member: DirectMember) -> DirectMember | None:
        return await self._transaction(_update_direct, member)

    async def get_direct(self, name: ClusterName) -> DirectMember | None:
        return await self._query(_get_direct, name)

    async def list_direct(self) -> list[DirectMember]:
        return await self._query(_list_direct)

    async def get_cluster(self, name: ClusterName) -> ClusterRecord | None:
        return await self._query(_get_cluster, "name", name)

    async def list_clusters(self) -> list[ClusterRecord]:
        return await self._query(_list_clusters)

    async def remove_cluster(
        self, name: ClusterName, now: datetime
    ) -> ClusterRecord | None:
        return await self._transaction(_remove_cluster, name, now)

    async def _query(
        self,
        verb: Callable[Concatenate[sqlite3.Connection, _Arguments], _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result:
        """Run `verb`, one SELECT, in the store's thread. It waits for no other process."""
        connection = self._connection
        assert connection is not None, "the store is closed"

        def run() -> _Result:
            with explained(self.path):
                return verb(connection, *args, **kwargs)

        return await self._in_thread(run)

    async def _transaction(
        self,
        verb: Callable[Concatenate[sqlite3.Connection, _Arguments], _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result:
        """Run `verb` in the store's thread, inside BEGIN IMMEDIATE and COMMIT or ROLLBACK."""
        connection = self._connection
        assert connection is not None, "the store is closed"

        def run() -> _Result:
            with explained(self.path), committed(connection):
                return verb(connection, *args, **kwargs)

        return await self._in_thread(run)

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


# The verbs. Each runs inside a transaction, in the store's thread.


def _add_token(
    connection: sqlite3.Connection, token: TokenRecord, now: datetime
) -> None:
    (outstanding,) = connection.execute(
        "SELECT count(*) FROM tokens "
        "WHERE used_at IS NULL AND revoked_at IS NULL AND expires_at > ?",
        (_to_number(now),),
    ).fetchone()
    if outstanding >= MAX_OUTSTANDING_TOKENS:
        raise TokenLimitReached
    finished = connection.execute(
        "SELECT * FROM tokens "
        "WHERE used_at IS NOT NULL OR revoked_at IS NOT NULL OR expires_at <= ?",
        (_to_number(now),),
    )
    for token_id in disposable_tokens([_token(row) for row in finished], now):
        connection.execute("DELETE FROM tokens WHERE id = ?", (token_id,))
    if _get_token(connection, token.id) is not None:
        raise ValueError(f"there is already a token {token.id}")
    connection.execute(
        "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            token.id,
            token.cluster,
            token.verifier,
            _to_number(token.created_at),
            _to_number(token.expires_at),
            _to_number(token.used_at),
            token.used_by_key_pin,
            _to_number(token.revoked_at),
            token.issued_certificate,
        ),
    )


def _get_token(connection: sqlite3.Connection, token_id: TokenId) -> TokenRecord | None:
    row = connection.execute(
        "SELECT * FROM tokens WHERE id = ?", (token_id,)
    ).fetchone()
    return _token(row) if row else None


def _list_tokens(connection: sqlite3.Connection) -> list[TokenRecord]:
    rows = connection.execute("SELECT * FROM tokens ORDER BY created_at, rowid")
    return [_token(row) for row in rows]


def _revoke_token(
    connection: sqlite3.Connection, token_id: TokenId, now: datetime
) -> TokenRecord | None:
    connection.execute(
        "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
        (_to_number(now), token_id),
    )
    return _get_token(connection, token_id)


def _use_token(connection: sqlite3.Connection, use: TokenUse) -> bytes:
    earlier = decide_join(
        use,
        token=_get_token(connection, use.token_id),
        named=_get_cluster(connection, "name", use.cluster),
        same_uid=_get_cluster(connection, "member_uid", use.member_uid),
    )
    if earlier is not None:
        return earlier
    connection.execute(
        "UPDATE tokens SET used_at = ?, used_by_key_pin = ?, issued_certificate = ? WHERE id = ?",
        (_to_number(use.at), use.key_pin, use.certificate, use.token_id),
    )
    connection.execute(
        "INSERT OR REPLACE INTO clusters VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            use.cluster,
            use.member_uid,
            str(use.serial),
            use.key_pin,
            use.agent_version,
            _to_number(use.at),
            use.token_id,
        ),
    )
    return use.certificate


def _add_direct(connection: sqlite3.Connection, member: DirectMember) -> None:
    decide_direct(
        member,
        named=_get_cluster(connection, "name", member.cluster),
        same_uid=_get_cluster(connection, "member_uid", member.member_uid),
    )
    _write_direct(connection, member)


def _update_direct(
    connection: sqlite3.Connection, member: DirectMember
) -> DirectMember | None:
    named = _get_cluster(connection, "name", member.cluster)
    if named is None:
        return None
    decide_direct_update(member, named=named)
    updated = dataclasses.replace(member, added_at=named.joined_at)
    _write_direct(connection, updated)
    return updated


def _write_direct(connection: sqlite3.Connection, member: DirectMember) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO direct_members VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            member.cluster,
            member.member_uid,
            bytes(member.kubeconfig),
            json.dumps(sorted(member.allow_users)),
            json.dumps(sorted(member.allow_groups)),
            member.is_insecure_allowed,
            _to_number(member.added_at),
            _to_number(member.updated_at),
        ),
    )


def _get_direct(
    connection: sqlite3.Connection, name: ClusterName
) -> DirectMember | None:
    row = connection.execute(
        "SELECT * FROM direct_members WHERE cluster = ?", (name,)
    ).fetchone()
    return _direct(row) if row else None


def _list_direct(connection: sqlite3.Connection) -> list[DirectMember]:
    rows = connection.execute("SELECT * FROM direct_members ORDER BY cluster")
    return [_direct(row) for row in rows]


def _get_cluster(
    connection: sqlite3.Connection, column: str, value: str
) -> ClusterRecord | None:
    row = connection.execute(
        f"SELECT * FROM members WHERE {column} = ?", (value,)
    ).fetchone()
    return _cluster(row) if row else None


def _list_clusters(connection: sqlite3.Connection) -> list[ClusterRecord]:
    rows = connection.execute("SELECT * FROM members ORDER BY name")
    return [_cluster(row) for row in rows]


def _remove_cluster(
    connection: sqlite3.Connection, name: ClusterName, now: datetime
) -> ClusterRecord | None:
    removed = _get_cluster(connection, "name", name)
    if removed is not None:
        connection.execute("DELETE FROM clusters WHERE name = ?", (name,))
        connection.execute("DELETE FROM direct_members WHERE cluster = ?", (name,))
        connection.execute(
            "UPDATE tokens SET revoked_at = ? WHERE cluster = ? "
            "AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?",
            (_to_number(now), name, _to_number(now)),
        )
    return removed


def _to_number(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // timedelta(microseconds=1)


def _to_moment(number: int | None) -> datetime | None:
    return None if number is None else _EPOCH + timedelta(microseconds=number)


def _fields(row: sqlite3.Row, *moments: str) -> dict[str, Any]:
    """Turn a row into the keywords of its record."""
    fields = dict(zip(row.keys(), row, strict=True))
    return fields | {name: _to_moment(fields[name]) for name in moments}


def _token(row: sqlite3.Row) -> TokenRecord:
    return TokenRecord(
        **_fields(row, "created_at", "expires_at", "used_at", "revoked_at")
    )


def _cluster(row: sqlite3.Row) -> ClusterRecord:
    fields = _fields(row, "joined_at")
    serial = fields["agent_serial"]
    return ClusterRecord(
        **fields | {"agent_serial": None if serial is None else int(serial)}
    )


def _direct(row: sqlite3.Row) -> DirectMember:
    fields = _fields(row, "added_at", "updated_at")
    return DirectMember(
        **fields
        | {
            "kubeconfig": PrivateBytes(fields["kubeconfig"]),
            "allow_users": frozenset(json.loads(fields["allow_users"])),
            "allow_groups": frozenset(json.loads(fields["allow_groups"])),
            "is_insecure_allowed": bool(fields["is_insecure_allowed"]),
        }
    )
