"""Kubeconfigs of test clusters: one cluster, one user, one context each."""

import base64
from pathlib import Path

import yaml

from tests.testbed.pki import KeyPair, write_secret

__all__ = ["write_kubeconfig"]


def write_kubeconfig(
    path: Path,
    *,
    name: str,
    server: str,
    ca_pem: bytes,
    client: KeyPair | None = None,
    token: str | None = None,
) -> Path:
    """Write a kubeconfig (0600) whose user has a client certificate or a bearer token."""
    user: dict[str, str] = {}
    if client is not None:
        user["client-certificate-data"] = _base64(client.certificate)
        user["client-key-data"] = _base64(client.key)
    if token is not None:
        user["token"] = token
    cluster = {"server": server, "certificate-authority-data": _base64(ca_pem)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "user"}}],
        "current-context": name,
        "users": [{"name": "user", "user": user}],
    }
    write_secret(path, yaml.safe_dump(config, sort_keys=False).encode())
    return path


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
