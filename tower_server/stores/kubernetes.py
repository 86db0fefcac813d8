"""The store in Kubernetes: one Secret a cluster, in the server's namespace on the host.

Reading is from a copy that a watch keeps current, also while the host's apiserver is away: tunnels go
on. Writing is a compare-and-swap of a cluster's one Secret (see `ledger`), decided over what has just
been read, so that several servers can share the store. What needs the apiserver and does not get it
raises StoreUnavailable.

One rule looks at several Secrets: a member may have one name. Joins of one server take turns, and ask
the apiserver and not the copy, so that of two joins under two names one is refused unless they come to
two servers within the same milliseconds. The rule guards against mistakes, which do not.

Longer than our files are: it is all verbs, and what each needs of the apiserver.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from certs.joining import parse_token_id
from certs.names import ClusterName
from shared.tunnel.tasks import TaskSet
from tower_server.kube.client import KubeClient
from tower_server.kube.errors import (
    Conflict,
    KubeError,
    NotFound,
    Rejected,
)
from tower_server.kube.informer import Informer
from tower_server.kube.resources import SECRETS, Object, name_of
from tower_server.membership import (
    ClusterRecord,
    DirectMember,
    TokenUse,
    decide_direct,
    decide_direct_update,
    decide_join,
)
from tower_server.stores import StoreUnavailable, TokenLimitReached
from tower_server.stores.ledger import (
    LEDGER_TYPE,
    MAX_TOKENS,
    Ledger,
    ledger_name,
    ledger_of,
    secret_of,
    token_selector,
    uid_selector,
)
from tower_server.tokens import (
    MAX_OUTSTANDING_TOKENS,
    TokenId,
    TokenRecord,
    TokenState,
    disposable_tokens,
    state_of,
)

__all__ = ["KubernetesStore", "explained", "unavailable"]

_log = logging.getLogger(__name__)

# How long a server waits at its start for the first list of ledgers: an apiserver that is being
# rolled answers again within seconds. Then it ends, and whoever runs it starts it again.
OPEN_SECONDS = 15.0

# An apiserver that has just started refuses everybody until it has read its RBAC.
REFUSED_SECONDS = 3.0

# How often one write is decided anew because another server wrote in between. Somebody always
# gets on, so this many losses in a row mean that something is wrong.
MAX_CONFLICTS = 8

# What is finished stays listed for a week: a minute more is nothing.
TIDY_EVERY = timedelta(minutes=1)

# Other clusters' ledgers that one new token tidies up.
MAX_TIDIED = 20


class KubernetesStore:
    """Keeps everything in Secrets. See `tower_server.stores.Store` for the verbs."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        """Use `KubernetesStore.open`; this asks for nothing yet."""
        self.namespace = namespace
        self._client = client
        self._ledgers: Informer[Ledger] = Informer(
            client,
            SECRETS,
            namespace,
            self._keep,
            fieldSelector=f"type={LEDGER_TYPE}",
        )
        self._tasks = TaskSet("store")
        # Held while a join or a new direct connection looks for its member's other names.
        self._joining = asyncio.Lock()
        # Secrets that cannot be read were complained about.
        self._unreadable: set[str] = set()
        # Which Secret has each token, and the other way round.
        self._homes: dict[TokenId, str] = {}
        self._residents: dict[str, tuple[TokenId, ...]] = {}
        # When all tokens were looked at for those that are finished for long.
        self._tidied_at = datetime.min.replace(tzinfo=UTC)
        self._ledgers.listen(self._index)

    @classmethod
    async def open(cls, client: KubeClient, namespace: str) -> "KubernetesStore":
        """Read everything there is, and stay current from then on.

        Raises:
            StoreUnavailable: If the host's apiserver does not let us, or does not answer.
        """
        store = cls(client, namespace)
        informer = store._ledgers
        store._tasks.start(informer.run(), "watch of the ledgers")
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not informer.synced.is_set():
            is_refused = isinstance(informer.trouble, Rejected | NotFound)
            patience = REFUSED_SECONDS if is_refused else OPEN_SECONDS
            if loop.time() - began >= patience:
                break
            await asyncio.sleep(0.05)
        if not informer.synced.is_set():
            await store.close()
            raise unavailable(informer.trouble)
        return store

    async def close(self) -> None:
        await self._tasks.close()

    @property
    def is_current(self) -> bool:
        """Whether the copy follows what happens at the host, as far as we know."""
        return self._ledgers.trouble is None

    def listen(self, listener: Callable[[ClusterName], None]) -> None:
        """Call this with the name of each cluster about which something changes, by whomever."""
        prefix = ledger_name(ClusterName(""))
        self._ledgers.listen(
            lambda name: listener(ClusterName(name.removeprefix(prefix)))
        )

    def ledger(self, cluster: ClusterName) -> Ledger:
        """What is known of a cluster at this moment; an empty ledger for nothing."""
        return self._ledgers.get(ledger_name(cluster)) or Ledger(cluster=cluster)

    def ledgers(self) -> list[Ledger]:
        """Everything that is known, in no order."""
        return self._ledgers.all()

    # Tokens

    async def add_token(self, token: TokenRecord, now: datetime) -> None:
        await self.invite(token, now, owner_uid=None)

    async def invite(
        self, token: TokenRecord, now: datetime, *, owner_uid: str | None
    ) -> None:
        """`add_token`; and the ledger belongs to this Cluster object from now on, if one is named."""
        self._refuse_too_many(now)
        disposable = self._disposable(now)
        if token.id in self._homes and token.id not in disposable:
            raise ValueError(f"there is already a token {token.id}")

        def add(ledger: Ledger) -> Ledger:
            ledger = ledger.without_tokens(disposable).with_token(token).trimmed(now)
            if len(ledger.tokens) > MAX_TOKENS:
                raise TokenLimitReached
            if owner_uid is not None:
                ledger = dataclasses.replace(
                    ledger, owner_uid=owner_uid, dismissed_uid=None
                )
            return ledger

        await self._change(token.cluster, add)
        await self._tidy(disposable, but=token.cluster)

    async def get_token(self, token_id: TokenId) -> TokenRecord | None:
        home = self._homes.get(token_id)
        ledger = self._ledgers.get(home) if home is not None else None
        if ledger is not None:
            return ledger.token(token_id)
        try:
            parse_token_id(token_id)
        except ValueError:
            return None
        # Another server may have made it this moment.
        found = await self._find(token_selector(token_id))
        tokens = (ledger.token(token_id) for ledger in found)
        return next((token for token in tokens if token is not None), None)

    async def list_tokens(self) -> list[TokenRecord]:
        tokens = [token for ledger in self.ledgers() for token in ledger.tokens]
        return sorted(tokens, key=lambda token: (token.created_at, token.id))

    async def revoke_token(
        self, token_id: TokenId, now: datetime
    ) -> TokenRecord | None:
        token = await self.get_token(token_id)
        if token is None:
            return None

        def revoke(ledger: Ledger) -> Ledger:
            kept = ledger.token(token_id)
            if kept is None or kept.revoked_at is not None:
                return ledger
            return ledger.with_token(dataclasses.replace(kept, revoked_at=now))

        return (await self._change(token.cluster, revoke)).token(token_id)

    async def use_token(self, use: TokenUse) -> bytes:
        answer = use.certificate

        def join(ledger: Ledger) -> Ledger:
            nonlocal answer
            # The token as it is in the very object that we are about to replace.
            own = ledger.token(use.token_id)
            earlier = decide_join(
                use,
                token=own or foreign,
                named=ledger.record,
                same_uid=same_uid,
            )
            if earlier is not None:
                answer = earlier
                return ledger
            assert own is not None  # decide_join refuses a token of another cluster
            answer = use.certificate
            return _joined(ledger, own, use)

        async with self._joining:
            token = await self.get_token(use.token_id)
            foreign = token if token and token.cluster != use.cluster else None
            same_uid = await self._with_uid(use.member_uid, use.cluster)
            await self._change(use.cluster, join, fresh=True)
        return answer

    # Clusters

    async def add_direct(self, member: DirectMember) -> None:
        def add(ledger: Ledger) -> Ledger:
            decide_direct(member, named=ledger.record, same_uid=same_uid)
            return dataclasses.replace(
                ledger, record=member.record, direct=member, dismissed_uid=None
            )

        async with self._joining:
            same_uid = await self._with_uid(member.member_uid, member.cluster)
            await self._change(member.cluster, add, fresh=True)

    async def update_direct(self, member: DirectMember) -> DirectMember | None:
        def update(ledger: Ledger) -> Ledger:
            named = ledger.record
            if named is None:
                return ledger
            decide_direct_update(member, named=named)
            updated = dataclasses.replace(member, added_at=named.joined_at)
            return dataclasses.replace(ledger, direct=updated)

        return (await self._change(member.cluster, update, fresh=True)).direct

    async def get_direct(self, name: ClusterName) -> DirectMember | None:
        return self.ledger(name).direct

    async def list_direct(self) -> list[DirectMember]:
        direct = (ledger.direct for ledger in self.ledgers())
        return sorted(
            (member for member in direct if member is not None),
            key=lambda member: member.cluster,
        )

    async def get_cluster(self, name: ClusterName) -> ClusterRecord | None:
        known = self.ledger(name).record
        if known is not None:
            return known
        # Another server may have let it in this moment; a "no" ends an agent for good.
        return (await self._read(name)).record

    async def list_clusters(self) -> list[ClusterRecord]:
        records = (ledger.record for ledger in self.ledgers())
        return sorted(
            (record for record in records if record is not None),
            key=lambda record: record.name,
        )

    async def remove_cluster(
        self, name: ClusterName, now: datetime
    ) -> ClusterRecord | None:
        removed: ClusterRecord | None = None

        def remove(ledger: Ledger) -> Ledger:
            nonlocal removed
            removed = ledger.record
            # One that is only declared is dismissed too, else it would be invited again.
            is_known = removed is not None or ledger.owner_uid is not None
            return ledger.without_member(now) if is_known else ledger

        await self._change(name, remove, fresh=True)
        return removed

    # What the controller of Cluster objects needs beside the verbs

    async def adopt(self, name: ClusterName, owner_uid: str | None) -> None:
        """Note which Cluster object a ledger belongs to, or that there is none (any more)."""

        def adopt(ledger: Ledger) -> Ledger:
            if ledger.is_empty:
                return ledger
            return dataclasses.replace(ledger, owner_uid=owner_uid, dismissed_uid=None)

        await self._change(name, adopt)

    async def note_taken(self, name: ClusterName, digest: str) -> None:
        """Note what was taken from the Secret of a direct connection."""

        def note(ledger: Ledger) -> Ledger:
            has_it = ledger.direct is not None
            return dataclasses.replace(ledger, taken=digest) if has_it else ledger

        await self._change(name, note)

    # Inside

    async def _change(
        self,
        name: ClusterName,
        decide: Callable[[Ledger], Ledger],
        *,
        fresh: bool = False,
    ) -> Ledger:
        """Replace a ledger by what `decide` makes of it, which may be called again.

        What `decide` raises comes out, and nothing is written.
        """
        ledger = await self._read(name) if fresh else self.ledger(name)
        with explained():
            for _ in range(MAX_CONFLICTS):
                changed = decide(ledger)
                if changed == ledger:
                    return ledger
                try:
                    return await self._write(changed)
                except (Conflict, NotFound):
                    ledger = await self._read(name)
        raise StoreUnavailable(
            f"other servers write about {name} all the time",
            "try again; if it stays so, look at how many servers run.",
        )

    async def _write(self, ledger: Ledger) -> Ledger:
        secret = secret_of(ledger, self.namespace)
        if ledger.revision is None:
            written = await self._client.create(SECRETS, secret)
        else:
            written = await self._client.replace(SECRETS, secret)
        self._ledgers.remember(written)
        written_ledger = ledger_of(written)
        if written_ledger.is_empty:
            await self._delete(written_ledger)
        return written_ledger

    async def _delete(self, ledger: Ledger) -> None:
        """Take an empty Secret away; if that fails it stays, and does no harm."""
        assert ledger.revision is not None
        name = ledger_name(ledger.cluster)
        with contextlib.suppress(KubeError):
            await self._client.delete(
                SECRETS, self.namespace, name, revision=ledger.revision
            )
            self._ledgers.forget(name, int(ledger.revision))

    async def _read(self, name: ClusterName) -> Ledger:
        with explained():
            try:
                secret = await self._client.get(
                    SECRETS, self.namespace, ledger_name(name)
                )
            except NotFound:
                return Ledger(cluster=name)
            self._ledgers.remember(secret)
            return _require(secret)

    async def _find(self, selector: str) -> list[Ledger]:
        with explained():
            secrets, _ = await self._client.list(
                SECRETS,
                self.namespace,
                labelSelector=selector,
                fieldSelector=f"type={LEDGER_TYPE}",
            )
        return [_require(secret) for secret in secrets]

    async def _with_uid(
        self, member_uid: str, name: ClusterName
    ) -> ClusterRecord | None:
        """The cluster that this member is; if several, one that is not `name`."""
        records = [
            ledger.record for ledger in await self._find(uid_selector(member_uid))
        ]
        found = [r for r in records if r is not None and r.member_uid == member_uid]
        return min(found, key=lambda record: record.name == name, default=None)

    def _index(self, secret_name: str) -> None:
        """Note which tokens a ledger has by now."""
        for token_id in self._residents.pop(secret_name, ()):
            if self._homes.get(token_id) == secret_name:
                del self._homes[token_id]
        ledger = self._ledgers.get(secret_name)
        if ledger is not None and ledger.tokens:
            token_ids = tuple(token.id for token in ledger.tokens)
            self._residents[secret_name] = token_ids
            self._homes.update(dict.fromkeys(token_ids, secret_name))

    def _refuse_too_many(self, now: datetime) -> None:
        if len(self._homes) < MAX_OUTSTANDING_TOKENS:
            return  # some of them may be finished: so much the better
        tokens = (token for ledger in self.ledgers() for token in ledger.tokens)
        outstanding = sum(state_of(token, now) is TokenState.READY for token in tokens)
        if outstanding >= MAX_OUTSTANDING_TOKENS:
            raise TokenLimitReached

    def _disposable(self, now: datetime) -> set[TokenId]:
        """Tokens that are finished for long. A thousand new ones in a row look once a minute."""
        if timedelta(0) <= now - self._tidied_at < TIDY_EVERY:
            return set()
        self._tidied_at = now
        tokens = [token for ledger in self.ledgers() for token in ledger.tokens]
        return set(disposable_tokens(tokens, now))

    async def _tidy(self, disposable: set[TokenId], *, but: ClusterName) -> None:
        """Forget tokens that are finished for long, a few clusters at a time."""
        worth = [
            ledger.cluster
            for ledger in self.ledgers()
            if ledger.cluster != but
            and disposable.intersection(token.id for token in ledger.tokens)
        ]
        for name in worth[:MAX_TIDIED]:
            try:
                await self._change(name, lambda kept: kept.without_tokens(disposable))
            except StoreUnavailable as error:
                _log.debug("finished tokens of %s are kept for now: %s", name, error)

    def _keep(self, secret: Object) -> Ledger | None:
        name = name_of(secret)
        try:
            return ledger_of(secret)
        except ValueError as error:
            if name not in self._unreadable:
                self._unreadable.add(name)
                _log.error("the Secret %s is left alone: %s", name, error)
            return None


def _joined(ledger: Ledger, token: TokenRecord, use: TokenUse) -> Ledger:
    return dataclasses.replace(
        ledger.with_token(use.used(token)), record=use.record, dismissed_uid=None
    )


def _require(secret: Object) -> Ledger:
    try:
        return ledger_of(secret)
    except ValueError as error:
        raise StoreUnavailable(
            f"the Secret {name_of(secret)} cannot be used ({error})",
            "restore it from a backup; or delete it, and the cluster has to join again.",
        ) from None


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Translate the apiserver's errors into StoreUnavailable, each with what to do."""
    try:
        yield
    except KubeError as error:
        raise unavailable(error) from error


def unavailable(error: KubeError | None) -> StoreUnavailable:
    """Why the store cannot do it, in a sentence for the log and for whoever asked."""
    if isinstance(error, Rejected | NotFound):
        return StoreUnavailable(
            f"the host's apiserver refuses what the store needs ({error})",
            "give the server's ServiceAccount the rights of the chart (files/rbac.yaml), in its own namespace.",
        )
    return StoreUnavailable(
        f"the host's apiserver does not answer ({error or 'no answer in time'})",
        "joins and changes wait until it is back; tunnels and requests go on.",
        public="the host's apiserver does not answer",
    )
