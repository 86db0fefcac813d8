"""What a kubeconfig says about one cluster: where it is, how to trust it, who we are there.

We take every form that needs no program of the admin's machine: certificates, tokens, token files,
user and password, HTTP proxies. Where the text itself comes from a stranger (a Secret that others
may write), it may name no files: else it could send the content of ours wherever it likes.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from shared.outbound import Proxy

__all__ = [
    "MAX_KUBECONFIG_BYTES",
    "BadKubeconfig",
    "Kubeconfig",
    "one_context",
    "parse_kubeconfig",
]

# A Secret holds at most this much, and so do the largest kubeconfigs of people.
MAX_KUBECONFIG_BYTES = 1024 * 1024

_FILE_KEYS = (
    ("cluster", "certificate-authority"),
    ("user", "client-certificate"),
    ("user", "client-key"),
    ("user", "tokenFile"),
)
_NEEDS_A_PROGRAM = ("exec", "auth-provider")


class BadKubeconfig(ValueError):
    """The kubeconfig cannot be used as it is; the message says what to change, and no secret."""


@dataclass(frozen=True, kw_only=True)
class Kubeconfig:
    """One context of a kubeconfig, with the content of the files that it names.

    Its repr shows no secret.
    """

    host: str
    port: int
    is_tls: bool
    base_path: str  # no slash at its end
    tls_server_name: str | None  # None: the host
    is_verified: bool
    ca_pem: str | None  # None: the roots of the system
    certificate_pem: str | None = None
    key_pem: str | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)
    proxy: Proxy | None = None
    # Everything that was read: when one of them changes, this is out of date. The token's file is
    # not among them, it is read again anyway.
    files: tuple[Path, ...] = ()


def parse_kubeconfig(
    data: bytes | str,
    *,
    source: str,
    directory: Path | None,
    context: str | None = None,
) -> Kubeconfig:
    """Read one context, the current one unless it is named, and the files that it needs.

    Args:
        source: What it is called in sentences.
        directory: Where relative paths begin; None if it may name no files at all.

    Raises:
        BadKubeconfig: If it is damaged, or wants what we do not do.
    """
    config = _Entry(source, _load(data, source))
    names = config.named("contexts", context or config.text("current-context")).entry(
        "context"
    )
    cluster = config.named("clusters", names.text("cluster")).entry("cluster")
    user = config.named("users", names.text("user")).optional_entry("user")
    _refuse_unsupported(cluster, user)
    reader = _Files(source, directory)
    try:
        url = urlsplit(cluster.text("server"))
        host, port = url.hostname, url.port
        base_path = url.path.rstrip("/").encode("ascii").decode()
    except ValueError:
        raise BadKubeconfig(f"{source}: the server is not a URL") from None
    if not host or url.scheme not in ("https", "http"):
        raise BadKubeconfig(f"{source}: the server must be a URL with https")
    is_tls = url.scheme == "https"
    token_file = reader.path(user, "tokenFile")
    return Kubeconfig(
        host=host,
        port=port or (443 if is_tls else 80),
        is_tls=is_tls,
        base_path=base_path,
        tls_server_name=cluster.optional_text("tls-server-name") or None,
        is_verified=not cluster.get("insecure-skip-tls-verify"),
        ca_pem=reader.pem(cluster, "certificate-authority"),
        certificate_pem=reader.pem(user, "client-certificate"),
        key_pem=reader.pem(user, "client-key"),
        token=user.optional_text("token"),
        token_file=token_file,
        username=user.optional_text("username"),
        password=user.optional_text("password"),
        proxy=_proxy(source, cluster.optional_text("proxy-url")),
        files=tuple(reader.read),
    )


def one_context(
    data: bytes | str,
    *,
    source: str,
    directory: Path | None,
    context: str | None = None,
) -> bytes:
    """The kubeconfig reduced to one context, the current one unless it is named.

    What it does not need stays at home, such as the credentials of other clusters. Relative paths
    become absolute; with `directory` None there may be none.

    Raises:
        BadKubeconfig: If there is no such context.
    """
    config = _Entry(source, _load(data, source))
    name = context or config.text("current-context")
    names = config.named("contexts", name).entry("context")
    parts = {
        "cluster": config.named("clusters", names.text("cluster")).entry("cluster"),
        "user": config.named("users", names.text("user")).optional_entry("user"),
    }
    fields = {kind: dict(entry.fields) for kind, entry in parts.items()}
    for kind, key in _FILE_KEYS:
        path = Path(parts[kind].optional_text(key))
        if not fields[kind].get(key):
            continue
        if directory is None and not path.is_absolute():
            raise BadKubeconfig(
                f"{source}: {key} {str(path)!r} is a path beside a file that is not there; "
                "make it absolute, or put the content inside (kubectl config view --raw --flatten)"
            )
        fields[kind][key] = str((directory or Path("/")) / path)
    reduced = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "member",
        "contexts": [
            {"name": "member", "context": {"cluster": "member", "user": "member"}}
        ],
        "clusters": [{"name": "member", "cluster": fields["cluster"]}],
        "users": [{"name": "member", "user": fields["user"]}],
    }
    return yaml.safe_dump(reduced, sort_keys=False).encode()


class _Entry:
    """A mapping somewhere in the kubeconfig; what is missing in it is said by name."""

    def __init__(self, source: str, fields: Any) -> None:
        self.source = source
        self.fields: Mapping[str, Any] = fields if isinstance(fields, dict) else {}

    def get(self, key: str) -> Any:
        return self.fields.get(key)

    def required(self, key: str) -> Any:
        if not self.fields.get(key):
            raise BadKubeconfig(
                f"{self.source} lacks {key!r}; its current context must name a cluster with a "
                "server, and a user"
            )
        return self.fields[key]

    def text(self, key: str) -> str:
        return str(self.required(key))

    def optional_text(self, key: str) -> str:
        value = self.fields.get(key)
        return "" if value is None else str(value)

    def entry(self, key: str) -> "_Entry":
        return _Entry(self.source, self.required(key))

    def optional_entry(self, key: str) -> "_Entry":
        return _Entry(self.source, self.fields.get(key))

    def named(self, kind: str, name: str) -> "_Entry":
        entries = self.required(kind)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and entry.get("name") == name:
                return _Entry(self.source, entry)
        known = [
            str(entry.get("name"))
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict)
        ]
        hint = f": it has {', '.join(sorted(known))}" if known else ""
        raise BadKubeconfig(f"{self.source} has no entry {name!r} in its {kind}{hint}")


class _Files:
    """Reads what the kubeconfig names, if it may name anything."""

    def __init__(self, source: str, directory: Path | None) -> None:
        self._source = source
        self._directory = directory
        self.read: list[Path] = []

    def path(self, entry: _Entry, key: str) -> Path | None:
        name = entry.optional_text(key)
        if not name:
            return None
        if self._directory is None:
            raise BadKubeconfig(
                f"{self._source}: {key} names a file, which is not allowed here; put the content "
                "inside (kubectl config view --raw --flatten), and for a token use 'token'"
            )
        return self._directory / name

    def pem(self, entry: _Entry, key: str) -> str | None:
        """What `key`-data holds, or the file that `key` names, beside the kubeconfig."""
        try:
            if data := entry.optional_text(f"{key}-data"):
                return base64.b64decode(data, validate=True).decode("ascii")
            path = self.path(entry, key)
            if path is None:
                return None
            self.read.append(path)
            return path.read_text(encoding="ascii")
        except BadKubeconfig:
            raise
        except OSError as error:
            raise BadKubeconfig(
                f"{self._source}: cannot read {key} {entry.get(key)}: {error.strerror}"
            ) from None
        except ValueError:
            raise BadKubeconfig(
                f"{self._source}: {key} is not PEM (base64 in -data)"
            ) from None


def _load(data: bytes | str, source: str) -> Any:
    if len(data) > MAX_KUBECONFIG_BYTES:
        raise BadKubeconfig(
            f"{source} has more than {MAX_KUBECONFIG_BYTES} bytes, so it is no kubeconfig"
        )
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BadKubeconfig(f"{source} is not YAML, so it is no kubeconfig") from None


def _refuse_unsupported(cluster: _Entry, user: _Entry) -> None:
    source = user.source
    for kind in _NEEDS_A_PROGRAM:
        if user.get(kind):
            raise BadKubeconfig(
                f"{source}: a user with {kind!r} cannot be used here, because it needs a "
                "program or a person; make a kubeconfig with a ServiceAccount token "
                "(kubectl create token) or a client certificate"
            )
    if any(
        str(key).startswith(("as-", "impersonate")) or key == "as"
        for key in user.fields
    ):
        raise BadKubeconfig(
            f"{source}: a user that impersonates another cannot be used"
        )
    has_password = user.get("username") or user.get("password")
    if has_password and (user.get("token") or user.get("tokenFile")):
        raise BadKubeconfig(
            f"{source}: its user has a token and a password; leave one of them out"
        )
    if user.get("password") and not user.get("username"):
        raise BadKubeconfig(f"{source}: its user has a password and no username")
    if ":" in user.optional_text("username"):
        raise BadKubeconfig(
            f"{source}: a username with a colon cannot be sent to an apiserver"
        )


def _proxy(source: str, text: str) -> Proxy | None:
    if not text:
        return None
    try:
        url = urlsplit(text)
        scheme, port = url.scheme, url.port
    except ValueError:
        scheme, port = "", None  # urllib's message may quote the password
    if scheme.startswith("socks"):
        raise BadKubeconfig(
            f"{source}: its proxy-url is of a SOCKS proxy, which is not supported here; use one "
            "of an HTTP proxy"
        )
    if scheme not in ("http", "https") or not url.hostname:
        raise BadKubeconfig(
            f"{source}: its proxy-url is not http://HOST:PORT or https://HOST:PORT"
        )
    return Proxy(
        host=url.hostname,
        port=port or (443 if scheme == "https" else 80),
        user=unquote(url.username) if url.username is not None else None,
        password=unquote(url.password) if url.password is not None else None,
        is_tls=scheme == "https",
    )
