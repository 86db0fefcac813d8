"""What outlives a server whose state lies in Kubernetes, in its own namespace on the host.

    Secret tower-ca             the CA: tls.key, tls.crt (--ca-secret names another one)
    Secret tower-server-tls     the servers' own key and certificate, shared by all of them
    Secrets tower-ledger-NAME   clusters and tokens (see stores.kubernetes)

Several servers may start at once on nothing: the one that makes a Secret first wins, and the others
take what is there. A CA is made only where no cluster is known: every member pins it, so a CA that is
missing where there are members was lost, and a new one would be of no use to them.
"""

import base64
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import Authority
from certs.chains import parse_certificate
from certs.keys import new_key, parse_private_key
from shared.program import ProgramFailed
from tower_server.identity import ServerIdentity, fitting_identity
from tower_server.kube.access import NoAccess, current_namespace, open_access
from tower_server.kube.client import KubeClient
from tower_server.kube.errors import Conflict, NotFound
from tower_server.kube.resources import SECRETS, Object
from tower_server.settings import HostSettings
from tower_server.stores.kubernetes import KubernetesStore, explained

__all__ = ["HostState", "open_host_state"]

SERVER_SECRET = "tower-server-tls"
# What TLS Secrets call key and certificate.
_NAMES = ("tls.key", "tls.crt")
# A certificate that two servers renew at once is written by one; the other takes it.
_ATTEMPTS = 5


class HostState:
    """The CA, the store and the servers' identity, with the client that reads and writes them."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        store: KubernetesStore,
        authority: Authority,
    ) -> None:
        self.client = client
        self.namespace = namespace
        self.store = store
        self.authority = authority

    async def identity(
        self, host_names: Sequence[str], now: datetime
    ) -> ServerIdentity:
        """Read the servers' identity, or make what is missing or no longer fits.

        Raises:
            ValueError: If the Secret is damaged, or a host name is none that a server can have.
            StoreUnavailable: If it cannot be read or written.
        """
        with explained():
            for _ in range(_ATTEMPTS):
                try:
                    return await self._identity(host_names, now)
                except Conflict:
                    continue  # another server was faster: look at what it wrote
        raise ValueError(
            f"the Secret {SERVER_SECRET} is written by others all the time: "
            "let all servers have the same public address"
        )

    async def _identity(
        self, host_names: Sequence[str], now: datetime
    ) -> ServerIdentity:
        secret = await _find(self.client, self.namespace, SERVER_SECRET)
        if secret is None:
            key = new_key()
            identity = fitting_identity(key, None, self.authority, host_names, now)
            secret = _tls_secret(self.namespace, SERVER_SECRET, identity)
            await self.client.create(SECRETS, secret)
            return identity
        key, kept = self._read_identity(secret)
        identity = fitting_identity(key, kept, self.authority, host_names, now)
        if identity.certificate is not kept:
            secret["data"] |= _tls_data(identity.key_pem, identity.chain_pem)
            await self.client.replace(SECRETS, secret)
        return identity

    def _read_identity(
        self, secret: Object
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate | None]:
        try:
            key = parse_private_key(_decoded(secret, _NAMES[0]))
        except ValueError as error:
            raise ValueError(
                f"the Secret {SERVER_SECRET}: {error}; delete it and start again (a new key is "
                "made, and nobody has to join again)"
            ) from None
        try:
            return key, parse_certificate(_decoded(secret, _NAMES[1]))
        except ValueError:
            return key, None  # no secret, and made anew at no cost


async def open_host_state(
    settings: HostSettings, zone: str, now: datetime, stack: AsyncExitStack
) -> HostState:
    """Open everything that is there, and make what is not; `stack` closes it.

    Raises:
        ProgramFailed: If we do not know where the host is, or the CA cannot be used.
        StoreUnavailable: If the host's apiserver does not let us, or does not answer.
    """
    try:
        client = KubeClient(await open_access(settings.kubeconfig))
    except NoAccess as error:
        raise ProgramFailed(str(error)) from error
    stack.push_async_callback(client.close)
    namespace = settings.namespace or current_namespace()
    if namespace is None:
        raise ProgramFailed(
            "The namespace of the server's Secrets is not known outside of a pod: "
            "name it with --namespace."
        )
    store = await KubernetesStore.open(client, namespace)
    stack.push_async_callback(store.close)
    try:
        authority = await _authority(client, settings, store, zone, now)
    except ValueError as error:
        raise ProgramFailed(f"The server cannot start: {error}.") from error
    return HostState(client, namespace, store, authority)


async def _authority(
    client: KubeClient,
    settings: HostSettings,
    store: KubernetesStore,
    zone: str,
    now: datetime,
) -> Authority:
    name, namespace = settings.ca_secret, store.namespace
    with explained():
        secret = await _find(client, namespace, name)
        if secret is None:
            if not settings.may_create_ca:
                raise ValueError(
                    f"there is no Secret {namespace}/{name}, which --ca-secret names"
                )
            if clusters := await store.list_clusters():
                raise ValueError(
                    f"the Secret {namespace}/{name} with the CA is gone, and {len(clusters)} clusters "
                    "pin it: restore it from a backup. Only if it is lost for good, remove every "
                    "cluster (the Secrets tower-ledger-*), and let them join again"
                )
            authority, key_pem = Authority.create(zone, now)
            try:
                await client.create(
                    SECRETS,
                    _secret(namespace, name, _tls_data(key_pem, authority.pem)),
                )
                return authority
            except Conflict:
                secret = await client.get(SECRETS, namespace, name)
    return Authority.from_pem(
        _decoded(secret, _NAMES[0]),
        _decoded(secret, _NAMES[1]),
        zone,
        now,
        place=f"the Secret {namespace}/{name}",
        names=_NAMES,
    )


async def _find(client: KubeClient, namespace: str, name: str) -> Object | None:
    try:
        return await client.get(SECRETS, namespace, name)
    except NotFound:
        return None


def _tls_secret(namespace: str, name: str, identity: ServerIdentity) -> Object:
    return _secret(namespace, name, _tls_data(identity.key_pem, identity.chain_pem))


def _secret(namespace: str, name: str, data: dict[str, str]) -> Object:
    labels = {"app.kubernetes.io/part-of": "tower"}
    return SECRETS.object(
        namespace,
        name,
        metadata={"labels": labels},
        type="kubernetes.io/tls",
        data=data,
    )


def _tls_data(key_pem: bytes, certificate_pem: bytes) -> dict[str, str]:
    values = (key_pem, certificate_pem)
    return {
        name: base64.b64encode(value).decode()
        for name, value in zip(_NAMES, values, strict=True)
    }


def _decoded(secret: Object, name: str) -> bytes:
    """A value of a Secret; empty if it is not there, which no key or certificate is."""
    return base64.b64decode((secret.get("data") or {}).get(name, ""))
