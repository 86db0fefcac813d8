"""The folder of a control plane: whose it is, and the keys, certificates and tokens in it."""

import fcntl
import os
import secrets
import shutil
from pathlib import Path

from tests.testbed import pki
from tests.testbed.commands import Layout

__all__ = ["FolderInUse", "claim", "write_identities"]

# What the apiserver's certificate holds: loopback, and the names of the `kubernetes` service.
APISERVER_NAMES = [
    "127.0.0.1",
    "localhost",
    "10.96.0.1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
]
# Bearer tokens of --token-auth-file: user and group.
TOKEN_USERS = {
    "admin-token": "system:masters",
    "kwok": "system:masters",
    "alice": "dev",
}


class FolderInUse(Exception):
    """Another control plane runs in the folder."""


def claim(directory: Path) -> int:
    """Empty the folder and hold its lock, which the kernel frees when we die; the holder's pid is inside.

    Raises:
        FolderInUse: If another process, or another object, holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise FolderInUse(f"{directory} is in use by another control plane") from error
    for entry in directory.iterdir():
        if entry.name == "lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def write_identities(layout: Layout) -> tuple[pki.TestAuthority, dict[str, str]]:
    """Write what the command lines in commands.py refer to; return the CA and the tokens by user."""
    for folder in ("etcd", "podfs", "pki"):
        (layout.directory / folder).mkdir()
    authority = pki.TestAuthority(layout.pki, f"{layout.name}-ca")
    for stem, pair in _certificates(authority).items():
        pair.write(layout.pki / stem)
    account_key = pki.new_key()
    pki.write_secret(layout.pki / "sa.key", pki.private_pem(account_key))
    (layout.pki / "sa.pub").write_bytes(pki.public_pem(account_key))
    tokens = {user: secrets.token_hex(16) for user in TOKEN_USERS}
    lines = [
        f'{token},{user},{user},"{TOKEN_USERS[user]}"\n'
        for user, token in tokens.items()
    ]
    pki.write_secret(layout.pki / "tokens.csv", "".join(lines).encode())
    return authority, tokens


def _certificates(authority: pki.TestAuthority) -> dict[str, pki.KeyPair]:
    kubelet_client = "kube-apiserver-kubelet-client"
    return {
        "apiserver": authority.issue_server("kube-apiserver", APISERVER_NAMES),
        "kubelet": authority.issue_server("system:node:fake", ["127.0.0.1"]),
        "kubelet-client": authority.issue_client(kubelet_client, ("system:masters",)),
        "proxy-client": authority.issue_client("front-proxy-client"),
    }
