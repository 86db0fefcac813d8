"""Where the member's apiserver is, and the credential with which we speak to it.

Either the ServiceAccount that Kubernetes mounts into a Pod, or a kubeconfig. Tokens in
files are read again, because Kubernetes renews them. Both become an `ApiServer`, which is
all that the pool needs to know.
"""

import base64
import contextlib
import os
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

__all__ = [
    "SERVICE_ACCOUNT_DIRECTORY",
    "ApiServer",
    "BadKubeconfig",
    "Credential",
    "from_kubeconfig",
    "in_cluster",
]

SERVICE_ACCOUNT_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# Kubernetes renews a projected token at four fifths of its life (at least 10 minutes), so
# half a minute of an old one never matters. client-go reads once a minute.
TOKEN_REREAD_SECONDS = 30.0


class BadKubeconfig(ValueError):
    """The kubeconfig cannot be used as it is; the message says what to change."""


class Credential:
    """The `Authorization` field of our own requests; none when a certificate does it.

    Its repr shows no secret.
    """

    def __init__(
        self,
        *,
        token: str = "",
        token_file: Path | None = None,
        monotonic: Callable[[], float],
    ) -> None:
        self._token_file = token_file
        self._monotonic = monotonic
        # When the file is to be read next.
        self._read_again_at = 0.0
        self._line = b""
        if token:
            self._line = _authorization(token)

    def __repr__(self) -> str:
        source = self._token_file or (
            "a fixed token" if self._line else "a certificate"
        )
        return f"Credential({source})"

    def line(self) -> bytes:
        """The field's line with CRLF, or nothing. A file that is gone keeps the last."""
        if self._token_file is not None:
            now = self._monotonic()
            if now >= self._read_again_at:
                self._read_again_at = now + TOKEN_REREAD_SECONDS
                # Gone, or caught in the middle of being written: keep what we have.
                with contextlib.suppress(OSError, ValueError):
                    token = self._token_file.read_text(encoding="ascii")
                    self._line = _authorization(token) or self._line
        return self._line

    def was_refused(self) -> None:
        """The apiserver did not accept it: look for a new one at the next request."""
        self._read_again_at = 0.0


def _authorization(token: str) -> bytes:
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise BadKubeconfig("the token for the apiserver holds characters no token has")
    return b"Authorization: Bearer %b\r\n" % token.encode() if token else b""


@dataclass(frozen=True, kw_only=True)
class ApiServer:
    """One apiserver: where it is, how to trust it, who we are to it."""

    host: str
    port: int
    # None: plain HTTP, which only a local proxy of the admin's own speaks.
    tls: ssl.SSLContext | None
    # The name in the certificate.
    server_hostname: str | None
    # What precedes every path; no slash at its end. Mostly empty.
    base_path: bytes = b""
    credential: Credential = field(repr=False)

    @property
    def authority(self) -> bytes:
        """The Host field's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()

    def __str__(self) -> str:
        return self.authority.decode()


def in_cluster(
    *,
    monotonic: Callable[[], float],
    environment: Mapping[str, str] = os.environ,
    directory: Path = SERVICE_ACCOUNT_DIRECTORY,
) -> ApiServer:
    """The apiserver of the cluster whose Pod we run in.

    Raises:
        BadKubeconfig: If this is not a Pod with a ServiceAccount.
    """
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    token_file = directory / "token"
    ca_file = directory / "ca.crt"
    if not host or not token_file.is_file() or not ca_file.is_file():
        raise BadKubeconfig(
            "this is not a Pod with a ServiceAccount token; outside of a cluster give a "
            "kubeconfig of the member (--kubeconfig)"
        )
    return ApiServer(
        host=host,
        port=int(port),
        tls=_client_context(ca_pem=ca_file.read_text()),
        server_hostname=host,
        credential=Credential(token_file=token_file, monotonic=monotonic),
    )


def from_kubeconfig(path: Path, *, monotonic: Callable[[], float]) -> ApiServer:
    """The apiserver of a kubeconfig's current context.

    Raises:
        BadKubeconfig: If the file cannot be read or wants what we do not do.
    """
    config = _load(path)
    context = _entry(path, config, "contexts", _get(path, config, "current-context"))
    names = _get(path, context, "context")
    cluster = _get(
        path, _entry(path, config, "clusters", _get(path, names, "cluster")), "cluster"
    )
    user = _entry(path, config, "users", _get(path, names, "user")).get("user") or {}
    try:
        url = urlsplit(str(_get(path, cluster, "server")))
        host, port = url.hostname, url.port
        base_path = url.path.rstrip("/").encode("ascii")
    except ValueError:
        raise BadKubeconfig(f"{path}: the server is not a URL") from None
    if not host or url.scheme not in ("https", "http"):
        raise BadKubeconfig(f"{path}: the server must be a URL with https")
    _refuse_unsupported(path, cluster, user)
    is_tls = url.scheme == "https"
    return ApiServer(
        host=host,
        port=port or (443 if is_tls else 80),
        tls=_context(path, cluster, user) if is_tls else None,
        server_hostname=(cluster.get("tls-server-name") or host) if is_tls else None,
        base_path=base_path,
        credential=_credential(path, user, monotonic),
    )


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadKubeconfig(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError):
        raise BadKubeconfig(f"{path} is not YAML, so it is no kubeconfig") from None


def _get(path: Path, entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or not entry.get(key):
        raise BadKubeconfig(
            f"{path} lacks {key!r}; its current context must name a cluster with a "
            "server, and a user"
        )
    return entry[key]


def _entry(path: Path, config: Any, kind: str, name: str) -> Any:
    for entry in _get(path, config, kind):
        if isinstance(entry, dict) and entry.get("name") == name:
            return entry
    raise BadKubeconfig(f"{path} has no entry {name!r} in its {kind}")


def _refuse_unsupported(path: Path, cluster: Any, user: Any) -> None:
    for kind in ("exec", "auth-provider", "username", "password"):
        if user.get(kind):
            raise BadKubeconfig(
                f"{path}: a user with {kind!r} cannot be used here, because it needs a "
                "program or a person; make a kubeconfig with a ServiceAccount token "
                "(kubectl create token) or a client certificate"
            )
    if cluster.get("proxy-url"):
        raise BadKubeconfig(f"{path}: 'proxy-url' is not supported here")
    if any(key.startswith(("as-", "impersonate")) or key == "as" for key in user):
        raise BadKubeconfig(f"{path}: a user that impersonates another cannot be used")


def _credential(path: Path, user: Any, monotonic: Callable[[], float]) -> Credential:
    token_file = user.get("tokenFile")
    if token_file:
        credential = Credential(
            token_file=path.parent / token_file, monotonic=monotonic
        )
        if not credential.line():
            raise BadKubeconfig(f"{path}: cannot read the token in {token_file}")
        return credential
    return Credential(token=user.get("token") or "", monotonic=monotonic)


def _context(path: Path, cluster: Any, user: Any) -> ssl.SSLContext:
    return _client_context(
        ca_pem=_pem(path, cluster, "certificate-authority"),
        certificate_pem=_pem(path, user, "client-certificate"),
        key_pem=_pem(path, user, "client-key"),
        is_verified=not cluster.get("insecure-skip-tls-verify"),
    )


def _pem(path: Path, entry: Any, key: str) -> str | None:
    """What `key`-data holds, or the file that `key` names, beside the kubeconfig."""
    try:
        if entry.get(f"{key}-data"):
            return base64.b64decode(entry[f"{key}-data"], validate=True).decode("ascii")
        if entry.get(key):
            return (path.parent / str(entry[key])).read_text(encoding="ascii")
    except OSError as error:
        raise BadKubeconfig(
            f"{path}: cannot read {key} {entry[key]}: {error.strerror}"
        ) from None
    except ValueError:
        raise BadKubeconfig(f"{path}: {key} is not PEM (base64 in -data)") from None
    return None


def _client_context(
    *,
    ca_pem: str | None,
    certificate_pem: str | None = None,
    key_pem: str | None = None,
    is_verified: bool = True,
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # HTTP/2 would be the apiserver's first choice; the relay speaks HTTP/1.1.
    context.set_alpn_protocols(["http/1.1"])
    # Kubernetes' own CAs and older certificates lack extensions that RFC 5280 wants.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    try:
        if not is_verified:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif ca_pem:
            context.load_verify_locations(cadata=ca_pem)
        else:
            context.load_default_certs()
        if certificate_pem and key_pem:
            with _readable(certificate_pem + "\n" + key_pem) as chain:
                context.load_cert_chain(chain)
        elif certificate_pem or key_pem:
            raise BadKubeconfig("client-certificate and client-key go together")
    except ssl.SSLError as error:
        raise BadKubeconfig(
            f"a certificate or key for the apiserver cannot be used: {error.reason}"
        ) from None
    return context


@contextlib.contextmanager
def _readable(pem: str) -> Iterator[str]:
    """A path that holds the text: load_cert_chain takes nothing else. Never on a disk."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tower-client-key", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, pem.encode())
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        # mkstemp makes it 0600; it is gone before anybody else runs.
        descriptor, name = tempfile.mkstemp()
        try:
            os.write(descriptor, pem.encode())
            yield name
        finally:
            os.close(descriptor)
            os.unlink(name)
