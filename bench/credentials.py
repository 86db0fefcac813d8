"""Credentials of many agents at once, without their joins: what a fleet needs to dial in.

Certificates come from the CA that the server will open, and the records of the clusters
go into the file of its store in one transaction. The store's own verbs would do the same
one join at a time, each with two writes to the disk.
"""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from bench.certificates import write_private
from certs.authority import Authority
from certs.keys import certificate_request, new_key, spki_pin
from certs.names import DEFAULT_ZONE, ClusterName
from tower_server.state_directory import AUTHORITY_NAME, STORE_NAME
from tower_server.stores.sqlite_file import committed, connect

__all__ = ["write_identities"]

_INSERT = (
    "INSERT INTO clusters (name, member_uid, agent_serial, agent_key_pin, agent_version, "
    "joined_at, token_id) VALUES (?, ?, ?, ?, ?, ?, ?)"
)


def write_identities(state_directory: Path, identities: Path, count: int) -> None:
    """Make `count` clusters that have joined a server which has not started yet.

    Args:
        state_directory: Of the server; made here, with its CA and its store.
        identities: What the load program reads: a list of cluster, certificate and key.
    """
    state_directory.mkdir(mode=0o700)
    now = datetime.now(UTC)
    authority = Authority.open_or_create(
        state_directory / AUTHORITY_NAME, DEFAULT_ZONE, now
    )
    known, rows = [], []
    for number in range(count):
        cluster, key = ClusterName(f"member-{number}"), new_key()
        certificate = authority.issue_agent(certificate_request(key), cluster, now)
        private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        known.append(
            {
                "cluster": cluster,
                "certificate": _text(certificate.public_bytes(Encoding.DER)),
                "key": _text(private),
            }
        )
        joined_at = int(now.timestamp() * 1_000_000)
        pin, serial = spki_pin(key.public_key()), str(certificate.serial_number)
        rows.append(
            (cluster, f"uid of {cluster}", serial, pin, "bench", joined_at, "bench")
        )
    write_private(identities, json.dumps(known).encode())
    connection = connect(state_directory / STORE_NAME)
    try:
        with committed(connection):
            connection.executemany(_INSERT, rows)
    finally:
        connection.close()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
