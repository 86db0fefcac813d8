"""Every TLS context of the program, in one place, from bytes in memory.

Python's `ssl.create_default_context` is not used: it honours SSLKEYLOGFILE, so that one
environment variable would write our session keys to a file. Contexts check that our CA
signed the peer; the role is checked by the caller, with `names.role_of(peer_certificate(…))`,
because OpenSSL knows nothing of roles. A caller that forgets it lets any of our
certificates in.
"""

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

from cryptography import x509

from certs.names import UserIdentity, user_identity

__all__ = [
    "HTTP_PROTOCOL",
    "INNER_PROTOCOL",
    "OuterMode",
    "apiserver_client",
    "inner_client",
    "inner_server",
    "outer_client",
    "own_https",
    "peer_certificate",
    "peer_user",
    "proven_user",
    "sealed_client",
    "sealed_server",
    "unverified",
]

# Offered alone, so that nobody in between picks HTTP/2, which neither end of ours speaks.
HTTP_PROTOCOL = "http/1.1"
# What runs inside a tunnel between agent and server. A name of its own keeps a connection
# that was led astray from being taken for HTTP, or HTTP for it.
INNER_PROTOCOL = "tower-inner/1"

# User certificates that are known by their bytes: a KiB or two each, at most 9 KiB. Only
# certificates that our CA signed get here.
MAX_KNOWN_USERS = 256

# Whom an agent trusts for the outer TLS: the pinned Tower CA, the public roots, or a file's CA.
OuterMode = Literal["tower", "system", "custom"]


# -- Servers -------------------------------------------------------------------------------


def own_https(
    cert_chain_pem: bytes, key_pem: bytes, ca_pem: bytes | None = None
) -> ssl.SSLContext:
    """The server's own HTTPS: join, tunnels, the gateway.

    With a CA, a client may show a certificate of it, and need not. Whoever believes it
    demands TLS 1.3 and a role: see `proven_user`.

    TLS 1.2 is allowed here: reverse proxies in front of us may speak nothing newer.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([HTTP_PROTOCOL])
    if ca_pem is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        _trust(context, ca_pem)
        # As in `_mutual_server`: every connection proves itself anew.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    _load_identity(context, cert_chain_pem, key_pem)
    return context


def sealed_server(
    cert_chain_pem: bytes, key_pem: bytes, ca_pem: bytes
) -> ssl.SSLContext:
    """The agent's end of the sealed face: only with a certificate of our CA.

    After the handshake the caller reads `names.user_identity(peer_certificate(…), zone)`.
    """
    return _mutual_server(cert_chain_pem, key_pem, ca_pem, HTTP_PROTOCOL)


def inner_server(
    cert_chain_pem: bytes, key_pem: bytes, ca_pem: bytes
) -> ssl.SSLContext:
    """The accepting end of a stream between agent and server inside the tunnel.

    After the handshake the caller demands the peer's role.
    """
    return _mutual_server(cert_chain_pem, key_pem, ca_pem, INNER_PROTOCOL)


def _mutual_server(
    cert_chain_pem: bytes, key_pem: bytes, ca_pem: bytes, protocol: str
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context, protocol)
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session is accepted with a client certificate that expired since (tried), and
    # a ticket outlives a revocation: every connection proves itself anew.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    _trust(context, ca_pem)
    _load_identity(context, cert_chain_pem, key_pem)
    return context


# -- Clients -------------------------------------------------------------------------------


def inner_client(
    cert_chain_pem: bytes, key_pem: bytes, ca_pem: bytes
) -> ssl.SSLContext:
    """The opening end of a stream between agent and server inside the tunnel.

    After the handshake the caller demands the peer's role. There is no host name to check:
    whoever has that role is who we mean, wherever it runs.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context, INNER_PROTOCOL)
    context.check_hostname = False
    _trust(context, ca_pem)
    _load_identity(context, cert_chain_pem, key_pem)
    return context


def sealed_client(
    cert_chain_pem: bytes, key_pem: bytes, ca_pem: bytes
) -> ssl.SSLContext:
    """A user's end of the sealed face; the server name is the cluster's (`names.host_name`)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context, HTTP_PROTOCOL)
    _trust(context, ca_pem)
    _load_identity(context, cert_chain_pem, key_pem)
    return context


def outer_client(mode: OuterMode, ca_pem: bytes | None = None) -> ssl.SSLContext:
    """An agent's connection to the server's port, or to what stands in front of it.

    `tower` and `custom` trust only `ca_pem`, `system` the public roots. The name is checked
    in all of them. What must stay true with a stranger in front is proven inside: by join
    proofs, assertions, and TLS within the tunnel.

    Raises:
        ValueError: If a mode lacks its CA, has one too many, or it is damaged.
    """
    if (mode == "system") != (ca_pem is None):
        raise ValueError(f"the outer TLS mode {mode} and a CA file do not go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([HTTP_PROTOCOL])
    # A stranger's load balancer may speak nothing newer than 1.2; our server does.
    modern = mode == "tower"
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_3 if modern else ssl.TLSVersion.TLSv1_2
    )
    if ca_pem is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, ca_pem)
    return context


def unverified() -> ssl.SSLContext:
    """Trusts whoever answers: only for GET /join/ca, whose answer the pin then proves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([HTTP_PROTOCOL])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def apiserver_client(
    *,
    ca_pem: bytes | None,
    cert_chain_pem: bytes | None = None,
    key_pem: bytes | None = None,
    verified: bool = True,
) -> ssl.SSLContext:
    """A connection to a member's apiserver, as its kubeconfig or ServiceAccount says.

    `ca_pem=None` means the public roots, as in kubeconfigs. `verified=False` is the
    kubeconfig's `insecure-skip-tls-verify`.

    Raises:
        ValueError: If a certificate or key is damaged, or one comes without the other.
    """
    if (cert_chain_pem is None) != (key_pem is None):
        raise ValueError("a client certificate and its key are only good together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([HTTP_PROTOCOL])
    # Members' CAs are other people's; older ones lack fields that the strict rules demand.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_pem is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, ca_pem)
    if cert_chain_pem is not None and key_pem is not None:
        _load_identity(context, cert_chain_pem, key_pem)
    return context


def peer_certificate(
    connection: ssl.SSLObject | ssl.SSLSocket, *, protocol: str | None = None
) -> x509.Certificate:
    """The certificate that the peer proved to hold, after the handshake.

    With `protocol`, also demands that both sides agreed on it (ALPN).

    Raises:
        ValueError: If it showed none, or speaks another protocol.
    """
    if protocol is not None and connection.selected_alpn_protocol() != protocol:
        raise ValueError(f"the peer does not speak {protocol}")
    return x509.load_der_x509_certificate(_peer_der(connection))


def peer_user(connection: ssl.SSLObject | ssl.SSLSocket, zone: str) -> UserIdentity:
    """`names.user_identity` of the certificate that the peer proved to hold.

    Control planes come again and again with the same one, which is then not read again:
    what its bytes say stays the same. What changes, its end and whether it is denied,
    the caller checks as ever.

    Raises:
        RoleError: If it is no user certificate of this zone.
        ValueError: If the peer showed none.
    """
    return _user_in(_peer_der(connection), zone)


def proven_user(
    connection: ssl.SSLObject | ssl.SSLSocket, zone: str
) -> UserIdentity | None:
    """`peer_user` where a certificate may be shown and need not: None without one.

    Raises:
        RoleError: If it is no user certificate of this zone.
        ValueError: If it came over an older TLS, whose sessions can be resumed.
    """
    if not connection.getpeercert(binary_form=True):
        return None
    if connection.version() != "TLSv1.3":
        raise ValueError("a client certificate is believed over TLS 1.3 only")
    return peer_user(connection, zone)


@lru_cache(MAX_KNOWN_USERS)
def _user_in(der: bytes, zone: str) -> UserIdentity:
    return user_identity(x509.load_der_x509_certificate(der), zone)


def _peer_der(connection: ssl.SSLObject | ssl.SSLSocket) -> bytes:
    der = connection.getpeercert(binary_form=True)
    if not der:
        raise ValueError("the peer showed no certificate")
    return der


# -- Parts ---------------------------------------------------------------------------------


def _harden(context: ssl.SSLContext, protocol: str) -> None:
    """What holds for connections of which both ends know our CA."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols([protocol])


def _trust(context: ssl.SSLContext, ca_pem: bytes) -> None:
    try:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(
            "the CA bundle is damaged, or has no certificate in it"
        ) from error


def _load_identity(
    context: ssl.SSLContext, cert_chain_pem: bytes, key_pem: bytes
) -> None:
    """Give a context its certificate and key.

    OpenSSL, as Python offers it, reads them from a path only.
    """
    with _short_lived_file(cert_chain_pem + b"\n" + key_pem) as path:
        try:
            context.load_cert_chain(path, password=_no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ValueError(
                    "the certificate and the key do not belong together"
                ) from None
            raise ValueError("the certificate or its key is damaged") from None


def _no_password() -> bytes:
    # Without this OpenSSL would ask on the terminal, and wait.
    raise ValueError("the key is encrypted; it has to be one without a password")


@contextmanager
def _short_lived_file(data: bytes) -> Iterator[str]:
    """A path to `data` for the length of the block; on Linux no disk ever sees it."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("tls-identity"), "wb", buffering=0) as file:
            _write_all(file.fileno(), data)
            path = f"/proc/self/fd/{file.fileno()}"
            if os.path.exists(path):
                yield path
                return
    # mkstemp's file is 0600.
    descriptor, path = tempfile.mkstemp(prefix="tower-")
    try:
        with open(descriptor, "wb", buffering=0) as file:
            _write_all(file.fileno(), data)
        yield path
    finally:
        os.unlink(path)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
