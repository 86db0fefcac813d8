"""The controller of Cluster objects: watches, asks `plan` and `conditions`, does what they say.

The registry of every server follows the ledgers, whoever writes them: a member that joined at another
server is known here, one that was removed is cut off. The rest is done by the holder of the lease alone.

What `conditions` says of tunnels is what this server's registry knows. Where several servers hold
tunnels at once, the registry has to know of the others' before this is switched on for them.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from certs.authority import Authority
from certs.names import ClusterName, host_name
from shared.errors import Code
from shared.http.kubeconfig import BadKubeconfig
from shared.settings import HostPort
from shared.tunnel.tasks import TaskSet
from tower_server.controllers.actions import ClusterActions, Connections
from tower_server.controllers.conditions import Facts, decide_status
from tower_server.controllers.objects import (
    ClusterView,
    SecretView,
    cluster_of,
    join_secret_name,
    secret_view,
)
from tower_server.controllers.plan import Observed, plan
from tower_server.controllers.queue import WorkQueue
from tower_server.kube.client import KubeClient
from tower_server.kube.errors import Conflict, KubeError, Unreachable
from tower_server.kube.informer import Informer
from tower_server.kube.lease import Lease
from tower_server.kube.resources import CLUSTERS, SECRETS
from tower_server.kubeconfig import cluster_url
from tower_server.registry import Registry
from tower_server.stores import StoreUnavailable, TokenLimitReached
from tower_server.stores.kubernetes import KubernetesStore
from tower_server.stores.ledger import LEDGER_TYPE, Ledger

__all__ = ["ClusterController"]

_log = logging.getLogger(__name__)

LEASE_NAME = "tower-server"

# Clusters that are looked at at the same time: each mostly waits for the apiserver.
WORKERS = 8

# Secrets that are nobody's kubeconfig: they are large, many, or keys of ours.
_OTHER_TYPES = (
    LEDGER_TYPE,
    "kubernetes.io/tls",
    "kubernetes.io/service-account-token",
    "helm.sh/release.v1",
)


class ClusterController:
    """Run `run` in a task; nothing is done before."""

    def __init__(
        self,
        client: KubeClient,
        store: KubernetesStore,
        registry: Registry,
        authority: Authority,
        *,
        connections: Connections,
        public_address: HostPort,
        identity: str,
        on_replaced: Callable[[ClusterName, str], None],
        clock: Callable[[], datetime],
    ) -> None:
        """Build it.

        Args:
            identity: Of this server among those that share the lease; the same after a restart.
            on_replaced: Told a cluster and the pin of the one agent's key that is good.
            clock: The time, with a time zone.
        """
        self._client = client
        self._store = store
        self._registry = registry
        self._authority = authority
        self._connections = connections
        self._public_address = public_address
        self._on_replaced = on_replaced
        self._clock = clock
        self._started_at = clock()
        loop = asyncio.get_running_loop()
        self._queue: WorkQueue[ClusterName] = WorkQueue(loop.time)
        self._clusters: Informer[ClusterView] = Informer(
            client, CLUSTERS, None, cluster_of
        )
        self._secrets: Informer[SecretView] = Informer(
            client,
            SECRETS,
            store.namespace,
            secret_view,
            fieldSelector=",".join(f"type!={kind}" for kind in _OTHER_TYPES),
        )
        self._lease = Lease(
            client, store.namespace, LEASE_NAME, identity, self._lease_changed
        )
        # Set while we hold the lease and both copies are there.
        self._may_write = asyncio.Event()
        self._actions = ClusterActions(
            client,
            store,
            authority,
            self._clusters,
            self._secrets,
            connections=connections,
            public_address=public_address,
            clock=clock,
        )
        self._tasks = TaskSet("controller")
        # Apart, because a server that drains still cuts off who is removed meanwhile.
        self._cuts = TaskSet("removals")
        self._is_closed = False
        # Which key each cluster's agent had when we last looked.
        self._key_pins: dict[ClusterName, str | None] = {}
        # Since when a member's apiserver has not answered well.
        self._trouble_since: dict[ClusterName, datetime] = {}

    async def run(self) -> None:
        """Watch and work until cancelled; then give the lease back."""
        self._store.listen(self._ledger_changed)
        self._registry.listen(self._queue.add)
        self._clusters.listen(lambda name: self._queue.add(ClusterName(name)))
        self._secrets.listen(self._secret_changed)
        for ledger in self._store.ledgers():
            self._follow(ledger.cluster)
        try:
            self._tasks.start(self._clusters.run(), "watch of the clusters")
            self._tasks.start(self._secrets.run(), "watch of the secrets")
            await self._clusters.synced.wait()
            await self._secrets.synced.wait()
            self._tasks.start(self._lease.run(), "lease")
            for number in range(WORKERS):
                self._tasks.start(self._work(), f"worker {number}")
            await asyncio.Event().wait()
        finally:
            await self._tasks.close()

    async def close(self) -> None:
        """Cut nobody off any more. `run` has ended before."""
        self._is_closed = True
        await self._cuts.close()

    # What happened

    def _lease_changed(self, held: bool) -> None:
        if not held:
            self._may_write.clear()
            return
        self._may_write.set()
        names = {*self._clusters.names(), *(le.cluster for le in self._store.ledgers())}
        for name in names:
            self._queue.add(ClusterName(name))

    def _secret_changed(self, secret_name: str) -> None:
        secret = self._secrets.get(secret_name)
        prefix = join_secret_name(ClusterName(""))
        if secret_name.startswith(prefix):
            self._queue.add(ClusterName(secret_name.removeprefix(prefix)))
        if secret is None or secret.data:
            for cluster in self._clusters.all():
                if cluster.secret_name == secret_name:
                    self._queue.add(cluster.name)

    def _ledger_changed(self, name: ClusterName) -> None:
        if self._is_closed:
            return
        self._follow(name)
        self._queue.add(name)

    def _follow(self, name: ClusterName) -> None:
        """Let the registry know what the ledger says, whoever wrote it."""
        ledger = self._store.ledger(name)
        record = ledger.record
        if record is None:
            self._key_pins.pop(name, None)
            if self._registry.knows(name):
                self._cuts.start(self._cut(name), f"end of {name}")
            return
        self._registry.know(name, record.member_uid)
        key_pin = record.agent_key_pin
        if key_pin is not None and self._key_pins.get(name, key_pin) != key_pin:
            self._on_replaced(name, key_pin)
        self._key_pins[name] = key_pin
        if ledger.direct is not None:
            try:
                self._connections.apply(ledger.direct)
            except BadKubeconfig as error:
                _log.error("%s: cannot be served: %s", name, error)

    async def _cut(self, name: ClusterName) -> None:
        if self._store.ledger(name).record is None:
            await self._registry.cut(name, Code.REVOKED, "the cluster was removed")
            self._registry.forget(name)

    # Work

    async def _work(self) -> None:
        while True:
            await self._may_write.wait()
            name = await self._queue.take()
            try:
                await self._look_at(name)
            except Conflict:
                self._queue.done(name)  # it has changed: look at what it is now
                self._queue.add(name)
            except (KubeError, StoreUnavailable, TokenLimitReached) as error:
                self._put_off(name, error)
            except Exception:
                _log.exception("%s: a mistake of ours", name)
                self._queue.failed(name)
            except asyncio.CancelledError:
                raise
            else:
                self._queue.done(name)

    def _put_off(self, name: ClusterName, error: Exception) -> None:
        """Try again later. Once said, unless it is only that the apiserver is away."""
        cause = error.__cause__ if isinstance(error, StoreUnavailable) else error
        is_news = not isinstance(cause, Unreachable) and not self._queue.failures(name)
        level = logging.WARNING if is_news else logging.DEBUG
        _log.log(level, "%s: it will be tried again: %s", name, error)
        self._queue.failed(name)

    async def _look_at(self, name: ClusterName) -> None:
        seen = self._observe(name)
        decided = plan(seen)
        for action in decided.actions:
            await self._actions.act(action, seen)
            _log.info("%s: %s", name, action.name.lower().replace("_", " "))
        if decided.actions:
            self._queue.add(name)
            return
        again_at = [decided.look_again_at]
        if seen.cluster is not None and not seen.cluster.is_deleting:
            again_at.append(await self._write_status(seen, seen.cluster))
        times = [at for at in again_at if at is not None]
        if times:
            seconds = (min(times) - self._clock()).total_seconds()
            self._queue.add(name, max(0.0, seconds))
        elif seen.cluster is None:
            self._forget(name)

    def _observe(self, name: ClusterName) -> Observed:
        cluster = self._clusters.get(name)
        kubeconfig: bytes | None = None
        if cluster is not None and cluster.secret_name is not None:
            secret = self._secrets.get(cluster.secret_name)
            kubeconfig = secret.data.get(cluster.secret_key) if secret else None
        return Observed(
            name=name,
            now=self._clock(),
            ledger=self._store.ledger(name),
            cluster=cluster,
            join=self._secrets.get(join_secret_name(name)),
            fingerprint=self._actions.fingerprint(cluster) if cluster else "",
            kubeconfig=kubeconfig,
            rejection=self._actions.rejection(cluster, kubeconfig) if cluster else None,
        )

    def _forget(self, name: ClusterName) -> None:
        self._trouble_since.pop(name, None)
        self._actions.forget(name)
        self._queue.forget(name)

    # Status

    async def _write_status(
        self, seen: Observed, cluster: ClusterView
    ) -> datetime | None:
        """Write it if it is another; returns when to look again."""
        name, live = seen.name, self._registry.status(seen.name)
        if live is not None and live.apiserver_error is not None:
            self._trouble_since.setdefault(name, seen.now)
        else:
            self._trouble_since.pop(name, None)
        decided = decide_status(
            Facts(
                now=seen.now,
                started_at=self._started_at,
                cluster=cluster,
                ledger=seen.ledger,
                live=live,
                trouble_since=self._trouble_since.get(name),
                invitation=seen.invitation,
                join=seen.join,
                namespace=self._store.namespace,
                certificate_ends_at=self._certificate_ends_at(seen.ledger),
                has_kubeconfig=seen.kubeconfig is not None,
                rejection=seen.rejection,
                url=cluster_url(self._public_address, name),
                tls_server_name=host_name(name, self._authority.zone),
            )
        )
        if decided.is_changed:
            item = CLUSTERS.object(None, name, status=decided.status)
            # Of this very object: one that was made anew meanwhile has another status.
            item["metadata"]["uid"] = cluster.uid
            self._clusters.remember(
                await self._client.apply(CLUSTERS, item, subresource="status")
            )
        return decided.look_again_at

    def _certificate_ends_at(self, ledger: Ledger) -> datetime | None:
        """When the agent's certificate ends, as far as it has shown one since we started."""
        record = ledger.record
        if record is None or record.is_direct:
            return None
        return self._registry.certificate_ends_at(ledger.cluster)
