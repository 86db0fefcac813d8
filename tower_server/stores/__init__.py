"""What outlives the server's process: join tokens and clusters, behind a few domain verbs.

A cluster with a direct connection brings its kubeconfig along (`DirectMember`), which makes a store
that has one worth stealing. Everything else in here is worth nothing to a thief.

`Store` is the contract; `memory.MemoryStore` is its reference, `sqlite.SqliteStore` the default, which
leaves its file and transactions to `sqlite_file`, and `kubernetes.KubernetesStore` keeps a `ledger` for
each cluster in a Secret of the host. All pass the same tests (tests/tower_server/stores/test_stores.py).
Rules are not in here: a store calls the pure ones of `tower_server.membership` inside its transaction.

    StoreUnavailable     the store cannot do it now: disk full, locked, damaged. Nothing was written
    TokenLimitReached    too many tokens are outstanding
"""

from datetime import datetime
from typing import Protocol

from certs.names import ClusterName
from tower_server.membership import (
    ClusterRecord,
    DirectMember,
    JoinRefused,
    TokenUse,
)
from tower_server.tokens import MAX_OUTSTANDING_TOKENS, TokenId, TokenRecord

__all__ = [
    "ClusterRecord",
    "DirectMember",
    "JoinRefused",
    "Store",
    "StoreUnavailable",
    "TokenId",
    "TokenLimitReached",
    "TokenRecord",
    "TokenUse",
]


class StoreUnavailable(Exception):
    """The store cannot do what was asked, and has written nothing of it."""

    def __init__(self, problem: str, remedy: str, *, public: str = "") -> None:
        """Say what is wrong and what to do; `public` is what strangers may know of it."""
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy
        self.public = public

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}"


class TokenLimitReached(Exception):
    """So many join tokens wait to be used that another one is refused."""

    def __str__(self) -> str:
        return (
            f"{MAX_OUTSTANDING_TOKENS} join tokens are outstanding, the limit: revoke some with "
            "`tower token revoke ID`, or wait until they expire."
        )


class Store(Protocol):
    """Tokens and clusters. Every verb is atomic: it happens whole or not at all.

    Cancelling a verb does not undo it: it may still happen. Every verb may raise
    StoreUnavailable.
    """

    async def add_token(self, token: TokenRecord, now: datetime) -> None:
        """Keep a new token, and forget those that are finished for long.

        Raises:
            TokenLimitReached: If too many are outstanding.
            ValueError: If there is one with this id.
        """
        ...

    async def get_token(self, token_id: TokenId) -> TokenRecord | None:
        """Return a token, or None if there is none with this id."""
        ...

    async def list_tokens(self) -> list[TokenRecord]:
        """Return all tokens, the oldest first."""
        ...

    async def revoke_token(
        self, token_id: TokenId, now: datetime
    ) -> TokenRecord | None:
        """Take a token back and return it; None if there is none. Repeating changes nothing.

        It does not touch a cluster that joined with it: see `remove_cluster`.
        """
        ...

    async def use_token(self, use: TokenUse) -> bytes:
        """Record a join: the token is used and the cluster is there, or neither.

        Returns:
            The certificate chain to answer with: that of `use`, or that of the first answer if
            the same agent asks again within the resend window.

        Raises:
            JoinRefused: If a rule of `membership.decide_join` forbids it.
        """
        ...

    async def add_direct(self, member: DirectMember) -> None:
        """Record a cluster that is reached by a kubeconfig.

        Raises:
            JoinRefused: If a rule of `membership.decide_direct` forbids it.
        """
        ...

    async def update_direct(self, member: DirectMember) -> DirectMember | None:
        """Replace what a direct cluster is reached by; only `added_at` stays as it was.

        Returns:
            What is kept now; None if there is no cluster of this name.

        Raises:
            JoinRefused: If a rule of `membership.decide_direct_update` forbids it.
        """
        ...

    async def get_direct(self, name: ClusterName) -> DirectMember | None:
        """Return what a cluster is reached by; None if there is none, or it has an agent."""
        ...

    async def list_direct(self) -> list[DirectMember]:
        """Return all clusters with a direct connection by name."""
        ...

    async def get_cluster(self, name: ClusterName) -> ClusterRecord | None:
        """Return a cluster of either kind, or None if none has this name."""
        ...

    async def list_clusters(self) -> list[ClusterRecord]:
        """Return all clusters of either kind by name."""
        ...

    async def remove_cluster(
        self, name: ClusterName, now: datetime
    ) -> ClusterRecord | None:
        """Forget a cluster and return what it was; None if there is none of this name.

        Its name and its UID become free, its agent's certificate is no longer good, a kubeconfig
        of it is deleted, and its outstanding tokens are revoked so that it does not come back by
        itself. The caller ends its sessions.
        """
        ...

    async def close(self) -> None:
        """Release files and threads. No verb may be called afterwards; repeating is harmless."""
        ...
