"""Where the member's apiserver is, and the credential with which we speak to it.

Either the ServiceAccount that Kubernetes mounts into a Pod, or a kubeconfig. Tokens in
files are read again, because Kubernetes renews them. Both become an `ApiServer`, which is
all that the pool needs to know.
"""

import base64
import binascii
import contextlib
import json
import os
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from shared.http.kubeconfig import BadKubeconfig, Kubeconfig, parse_kubeconfig
from shared.http.status import AGENT, Speaker
from shared.outbound import Proxy

__all__ = [
    "SERVICE_ACCOUNT_DIRECTORY",
    "ApiServer",
    "BadKubeconfig",
    "Credential",
    "from_kubeconfig",
    "from_parsed",
    "in_cluster",
]

SERVICE_ACCOUNT_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# Kubernetes renews a projected token at four fifths of its life (at least 10 minutes), so
# half a minute of an old one never matters. client-go reads once a minute.
TOKEN_REREAD_SECONDS = 30.0


class Credential:
    """The `Authorization` field of our own requests; none when a certificate does it.

    Its repr shows no secret.
    """

    def __init__(
        self,
        *,
        token: str = "",
        token_file: Path | None = None,
        username: str = "",
        password: str = "",
        monotonic: Callable[[], float],
    ) -> None:
        self._token_file = token_file
        self._monotonic = monotonic
        # When the file is to be read next.
        self._read_again_at = 0.0
        self._line = b""
        # What it is, for people.
        self._kind = "a certificate"
        # When a fixed token ends, if it says so. One in a file is renewed by somebody.
        self.expires_at: datetime | None = None
        if token:
            self._kind = "a fixed token"
            self._line = _authorization(token)
            self.expires_at = _token_expires_at(token)
        elif username:
            self._kind = "a password"
            pair = base64.b64encode(f"{username}:{password}".encode())
            self._line = b"Authorization: Basic %b\r\n" % pair

    def __repr__(self) -> str:
        return f"Credential({self._token_file or self._kind})"

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


def _token_expires_at(token: str) -> datetime | None:
    """When a JWT says that it ends; None for what is none. It is not verified: it is our own."""
    try:
        _, payload, _ = token.strip().split(".")
        claims = json.loads(
            base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        )
        return datetime.fromtimestamp(claims["exp"], UTC)
    except (
        *(ValueError, binascii.Error, RecursionError),  # no JWT
        *(KeyError, TypeError),  # one that has no end, or no claims
        *(OverflowError, OSError),  # an end beyond all calendars
    ):
        return None


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
    # The certificate of our own in `tls`, if there is one: for people who ask when it ends.
    certificate_pem: str | None = field(default=None, repr=False)
    # Through whom it is reached, and the TLS to that one if it wants some.
    proxy: Proxy | None = None
    proxy_tls: ssl.SSLContext | None = None
    # Who tells callers when there is no answer of the apiserver's.
    speaker: Speaker = AGENT

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
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadKubeconfig(f"cannot read {path}: {error.strerror}") from None
    kubeconfig = parse_kubeconfig(data, source=str(path), directory=path.parent)
    return from_parsed(kubeconfig, source=str(path), monotonic=monotonic)


def from_parsed(
    kubeconfig: Kubeconfig,
    *,
    source: str,
    monotonic: Callable[[], float],
    speaker: Speaker = AGENT,
) -> ApiServer:
    """The apiserver of a kubeconfig that has been read. `source` is what it is called.

    Raises:
        BadKubeconfig: If a certificate, a key or a token in it cannot be used.
    """
    proxy = kubeconfig.proxy
    return ApiServer(
        host=kubeconfig.host,
        port=kubeconfig.port,
        tls=_client_context(
            ca_pem=kubeconfig.ca_pem,
            certificate_pem=kubeconfig.certificate_pem,
            key_pem=kubeconfig.key_pem,
            is_verified=kubeconfig.is_verified,
        )
        if kubeconfig.is_tls
        else None,
        server_hostname=(kubeconfig.tls_server_name or kubeconfig.host)
        if kubeconfig.is_tls
        else None,
        base_path=kubeconfig.base_path.encode("ascii"),
        credential=_credential(kubeconfig, source, monotonic),
        certificate_pem=kubeconfig.certificate_pem if kubeconfig.is_tls else None,
        proxy=proxy,
        proxy_tls=_proxy_context(kubeconfig.ca_pem) if proxy and proxy.is_tls else None,
        speaker=speaker,
    )


def _credential(
    kubeconfig: Kubeconfig, source: str, monotonic: Callable[[], float]
) -> Credential:
    if kubeconfig.token_file is None:
        return Credential(
            token=kubeconfig.token,
            username=kubeconfig.username,
            password=kubeconfig.password,
            monotonic=monotonic,
        )
    credential = Credential(token_file=kubeconfig.token_file, monotonic=monotonic)
    if not credential.line():
        raise BadKubeconfig(
            f"{source}: cannot read the token in {kubeconfig.token_file}"
        )
    return credential


def _proxy_context(ca_pem: str | None) -> ssl.SSLContext:
    """For a proxy that wants TLS itself: the system's roots, and the member's CA.

    client-go trusts only the latter, by accident; proxies of people have either.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_pem:
        with contextlib.suppress(ssl.SSLError):  # is reported for the apiserver
            context.load_verify_locations(cadata=ca_pem)
    return context


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
