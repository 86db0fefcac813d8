"""What `plan` decided, done. Thin: each action is a write or two, and can be repeated."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from certs.authority import Authority
from certs.joining import JoinString, new_token, verifier_of
from certs.keys import PrivateBytes
from certs.names import ClusterName
from shared.http.identity import DEFAULT_GROUPS, DEFAULT_USERS
from shared.http.kubeconfig import BadKubeconfig
from shared.member.preflight import MemberFacts, PreflightFailed
from shared.settings import HostPort
from tower_server.controllers.objects import (
    FINALIZER,
    ClusterView,
    SecretView,
    cluster_object,
    digest_of,
    join_secret,
    join_secret_name,
    kubeconfig_secret,
)
from tower_server.controllers.plan import (
    INVITATION_TTL,
    Action,
    Observed,
    Rejection,
)
from tower_server.kube.client import KubeClient
from tower_server.kube.errors import Conflict, NotFound
from tower_server.kube.informer import Informer
from tower_server.kube.resources import CLUSTERS, SECRETS, Resource
from tower_server.membership import DirectMember, JoinRefused
from tower_server.stores.kubernetes import KubernetesStore
from tower_server.token_form import parse_token_form
from tower_server.tokens import TokenId, TokenRecord

__all__ = ["ClusterActions", "Connections"]


class Connections(Protocol):
    """What we need of `direct.DirectConnections`."""

    def apply(self, member: DirectMember) -> None:
        """Serve a member, or go on by another kubeconfig."""
        ...

    async def check(self, member: DirectMember) -> MemberFacts:
        """Ask a member who it is, and whether its kubeconfig is good for what we do."""
        ...


class ClusterActions:
    """Acts; and remembers what could not be taken, and why."""

    def __init__(
        self,
        client: KubeClient,
        store: KubernetesStore,
        authority: Authority,
        clusters: Informer[ClusterView],
        secrets: Informer[SecretView],
        *,
        connections: Connections,
        public_address: HostPort,
        clock: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._store = store
        self._authority = authority
        # The controller's copies, which hear of our own writes at once.
        self._clusters = clusters
        self._secrets = secrets
        self._connections = connections
        self._public_address = public_address
        self._clock = clock
        # The last refusal of each cluster.
        self._rejections: dict[ClusterName, Rejection] = {}

    def forget(self, name: ClusterName) -> None:
        """Nothing is left of this cluster."""
        self._rejections.pop(name, None)

    def fingerprint(self, cluster: ClusterView) -> str:
        """Of all that a join Secret is made of, but its token."""
        made_of = [
            list(cluster.allow_users),
            list(cluster.allow_groups),
            cluster.agent_image,
            str(self._public_address),
            self._authority.pin,
        ]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]

    def rejection(
        self, cluster: ClusterView, kubeconfig: bytes | None
    ) -> Rejection | None:
        """What was refused last, if it is still what is there."""
        rejected = self._rejections.get(cluster.name)
        if rejected is None:
            return None
        digest = (
            digest_of(kubeconfig or b"")
            if cluster.is_direct
            else self.fingerprint(cluster)
        )
        return rejected if rejected.digest == digest else None

    async def act(self, action: Action, seen: Observed) -> None:
        """Do one step.

        Raises:
            KubeError, StoreUnavailable, TokenLimitReached: If it cannot be done now.
        """
        name, cluster = seen.name, seen.cluster
        match action:
            case Action.REMOVE_ORPHAN:
                await self._remove_orphan(name)
            case Action.CREATE_OBJECT:
                await self._create_object(seen)
            case Action.DISOWN:
                await self._store.adopt(name, None)
            case _:
                assert cluster is not None, f"{action} is about an object"
                await self._act_on_object(action, seen, cluster)

    async def _act_on_object(
        self, action: Action, seen: Observed, cluster: ClusterView
    ) -> None:
        name = seen.name
        match action:
            case Action.ADD_FINALIZER:
                await self._set_finalizers(cluster, [*cluster.finalizers, FINALIZER])
            case Action.DROP_FINALIZER:
                others = [other for other in cluster.finalizers if other != FINALIZER]
                await self._set_finalizers(cluster, others)
            case Action.REMOVE_MEMBER:
                await self._store.remove_cluster(name, self._clock())
                await self._store.adopt(name, None)
            case Action.DELETE_OBJECT:
                await self._delete(CLUSTERS, None, name)
            case Action.ADOPT:
                await self._store.adopt(name, cluster.uid)
            case Action.INVITE:
                await self._invite(cluster, seen.join)
            case Action.DELETE_JOIN_SECRET:
                await self._delete(
                    SECRETS, self._store.namespace, join_secret_name(name)
                )
            case Action.TAKE_KUBECONFIG:
                assert seen.kubeconfig is not None
                await self._take_kubeconfig(cluster, seen.kubeconfig)
            case _:
                raise AssertionError(f"{action} is done elsewhere")

    # Objects

    async def _set_finalizers(
        self, cluster: ClusterView, finalizers: list[str]
    ) -> None:
        metadata = {"finalizers": finalizers, "resourceVersion": cluster.revision}
        try:
            written = await self._client.merge(
                CLUSTERS, None, cluster.name, {"metadata": metadata}
            )
        except NotFound:
            return  # gone, as it should be
        if FINALIZER in finalizers:
            self._clusters.remember(written)

    async def _delete(
        self, resource: Resource, namespace: str | None, name: str
    ) -> None:
        try:
            await self._client.delete(resource, namespace, name)
        except NotFound:
            pass

    async def _remove_orphan(self, name: ClusterName) -> None:
        """Remove a member whose object is gone; our copy alone may be late to say so."""
        try:
            self._clusters.remember(await self._client.get(CLUSTERS, None, name))
            return
        except NotFound:
            # That also the definition may say, and then nothing was taken away.
            await self._client.list(CLUSTERS, None)
        await self._store.remove_cluster(name, self._clock())
        await self._store.adopt(name, None)

    async def _create_object(self, seen: Observed) -> None:
        record, direct = seen.ledger.record, seen.ledger.direct
        assert record is not None, "the plan says so"
        if direct is not None:
            secret = kubeconfig_secret(
                self._store.namespace, seen.name, bytes(direct.kubeconfig)
            )
            self._secrets.remember(await self._client.apply(SECRETS, secret))
            await self._store.note_taken(seen.name, digest_of(direct.kubeconfig))
        item = cluster_object(seen.name, is_direct=record.is_direct)
        try:
            made = await self._client.create(CLUSTERS, item)
        except Conflict:
            return  # somebody else made one: look again
        self._clusters.remember(made)
        await self._store.adopt(seen.name, made["metadata"]["uid"])

    # What comes in

    async def _invite(self, cluster: ClusterView, before: SecretView | None) -> None:
        """Make a token, and a Secret with all that a member's admin needs."""
        name, now = cluster.name, self._clock()
        fingerprint = self.fingerprint(cluster)
        try:
            form = parse_token_form(
                "manifest",
                allow_users=cluster.allow_users,
                allow_groups=cluster.allow_groups,
                image=cluster.agent_image,
            )
        except ValueError as error:
            self._reject(name, fingerprint, "BadSpec", f"{error}.", may_pass=False)
            return
        token_id, secret = new_token()
        token = TokenRecord(
            id=TokenId(token_id),
            cluster=name,
            verifier=verifier_of(secret),
            created_at=now,
            expires_at=now + INVITATION_TTL,
        )
        join = JoinString(
            cluster=name,
            host=self._public_address.host,
            port=self._public_address.port,
            token_id=token_id,
            secret=secret,
            pin=self._authority.pin,
        )
        await self._store.invite(token, now, owner_uid=cluster.uid)
        if before and before.token_id and before.fingerprint != fingerprint:
            # It permits what is not wanted any more. One that is only old runs out by itself.
            await self._store.revoke_token(TokenId(before.token_id), now)
        item = join_secret(
            self._store.namespace,
            cluster,
            token_id=token_id,
            expires_at=token.expires_at,
            fingerprint=fingerprint,
            join=join.format(),
            manifest=form.fields(join)["manifest"],
        )
        self._secrets.remember(await self._client.apply(SECRETS, item))

    async def _take_kubeconfig(self, cluster: ClusterView, data: bytes) -> None:
        """Try what lies in the Secret, and go on by it if it is good and leads to the same member."""
        name, now, digest = cluster.name, self._clock(), digest_of(data)
        known = self._store.ledger(name).direct
        member = DirectMember(
            cluster=name,
            member_uid="",
            kubeconfig=PrivateBytes(data),
            allow_users=frozenset(cluster.allow_users) or DEFAULT_USERS,
            allow_groups=frozenset(cluster.allow_groups) or DEFAULT_GROUPS,
            is_insecure_allowed=known is not None and known.is_insecure_allowed,
            added_at=now,
            updated_at=now,
        )
        try:
            facts = await self._connections.check(member)
            member = dataclasses.replace(member, member_uid=facts.uid)
            if known is None:
                await self._store.add_direct(member)
            else:
                await self._store.update_direct(member)
        except BadKubeconfig as error:
            self._reject(name, digest, "BadKubeconfig", f"{error}.", may_pass=False)
        except PreflightFailed as error:
            self._reject(name, digest, "MemberNotUsable", str(error), may_pass=True)
        except JoinRefused as error:
            self._reject(name, digest, "OtherMember", str(error), may_pass=True)
        else:
            self._rejections.pop(name, None)
            await self._store.note_taken(name, digest)

    def _reject(
        self,
        name: ClusterName,
        digest: str,
        reason: str,
        sentence: str,
        *,
        may_pass: bool,
    ) -> None:
        self._rejections[name] = Rejection(
            digest=digest,
            reason=reason,
            sentence=sentence,
            at=self._clock(),
            may_pass=may_pass,
        )
