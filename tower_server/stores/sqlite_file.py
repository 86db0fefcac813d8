"""The file of the SQLite store: its mode, its schema, its transactions, and what its errors mean.

`sqlite.SqliteStore` keeps the verbs; nothing here knows of tokens or clusters but their tables.
"""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from tower_server.stores import StoreUnavailable

__all__ = ["SCHEMA_VERSION", "committed", "connect", "explained"]

# 1 (2026-11): tokens, clusters.
# 2 (2026-11): direct_members, apart from `clusters`, whose rows all have an agent; the view
#              `members`, which is both.
SCHEMA_VERSION = 2

# How long a verb waits for another process that writes: longer than any of our transactions
# takes, shorter than the 10 s within which a join has to end.
LOCK_TIMEOUT_SECONDS = 3.0

# What leads from each version to the next, the first from an empty file. Each is applied once, in
# order: a step that is in a release does not change any more.
_STEPS = (
    """
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    cluster TEXT NOT NULL,
    verifier BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at INTEGER,
    used_by_key_pin TEXT,
    revoked_at INTEGER,
    issued_certificate BLOB
) STRICT;
CREATE TABLE clusters (
    name TEXT PRIMARY KEY,
    member_uid TEXT NOT NULL UNIQUE,
    agent_serial TEXT NOT NULL,
    agent_key_pin TEXT NOT NULL,
    agent_version TEXT NOT NULL,
    joined_at INTEGER NOT NULL,
    token_id TEXT NOT NULL
) STRICT;
""",
    """
CREATE TABLE direct_members (
    cluster TEXT PRIMARY KEY,
    member_uid TEXT NOT NULL UNIQUE,
    kubeconfig BLOB NOT NULL,
    allow_users TEXT NOT NULL,
    allow_groups TEXT NOT NULL,
    is_insecure_allowed INTEGER NOT NULL,
    added_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE VIEW members AS
    SELECT name, member_uid, joined_at, agent_serial, agent_key_pin, agent_version, token_id
    FROM clusters
    UNION ALL
    SELECT cluster, member_uid, added_at, NULL, NULL, NULL, NULL FROM direct_members;
""",
)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, or make it, with its schema up to date. Close it in the thread that opened it.

    Raises:
        StoreUnavailable: If it is damaged, readable by others, of a newer Tower, ...
    """
    _make_private_file(path)
    with explained(path):
        connection = sqlite3.connect(
            path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None
        )
        connection.row_factory = sqlite3.Row
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


def _make_private_file(path: Path) -> None:
    """Create the file for the owner only; SQLite gives its -wal and -shm the same mode.

    Raises:
        StoreUnavailable: If it cannot be made, or if others can read what is there.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreUnavailable(
            f"the store {path} cannot be opened ({error.strerror})",
            "check that its directory exists, and that the server's user may write to it.",
        ) from error
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
    if mode & 0o077:
        raise StoreUnavailable(
            f"the store {path} may be read or written by others (mode {mode:04o})",
            f"run `chmod 600 {path}` and consider who could have changed it.",
        )


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Set the connection up, and make or check the schema."""
    # Readers (a backup, say) and the writer do not wait for each other.
    connection.execute("PRAGMA journal_mode = WAL")
    # A commit survives a power cut. With less, a token that was used could come back.
    connection.execute("PRAGMA synchronous = FULL")
    # A kubeconfig that was replaced or removed is overwritten, not only forgotten.
    connection.execute("PRAGMA secure_delete = ON")
    with committed(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreUnavailable(
                f"the store {path} has schema version {version}, this server knows {SCHEMA_VERSION}",
                "it was written by a newer Tower: upgrade this server.",
            )
        for step in _STEPS[version:]:
            # Not executescript: it would commit our transaction before it starts.
            for statement in step.split(";"):
                connection.execute(statement)
        if version < SCHEMA_VERSION:
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextlib.contextmanager
def committed(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the body in a transaction: all of it is kept, or on any exception nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A failed COMMIT, or a full disk, may have ended the transaction already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Translate SQLite's errors into StoreUnavailable, each with what to do."""
    try:
        yield
    except sqlite3.Error as error:
        # The low byte is the kind of error, the others are details.
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                problem = f"the disk of the store {path} is full"
                remedy = "make room and try again; nothing was changed."
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                problem = f"another process holds the store {path} locked"
                remedy = "end it (is a second server or a database tool running?) and try again."
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                problem = f"the store {path} is damaged"
                remedy = "stop the server and restore the file from a backup."
            case (
                sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM
            ):
                problem = f"the store {path} cannot be written"
                remedy = "check the owner and mode of the file and its directory, and the mount."
            case _:
                problem = f"the store {path} failed ({error})"
                remedy = "check the disk; the server's log has more."
        raise StoreUnavailable(problem, remedy) from error
