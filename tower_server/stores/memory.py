"""The reference store: what the verbs mean, in dictionaries. Gone with the process.

There is no await inside a verb, so each is atomic on one event loop.
"""

import dataclasses
from datetime import datetime

from certs.names import ClusterName
from tower_server.membership import (
    ClusterRecord,
    DirectMember,
    TokenUse,
    decide_direct,
    decide_direct_update,
    decide_join,
)
from tower_server.stores import TokenLimitReached
from tower_server.tokens import (
    MAX_OUTSTANDING_TOKENS,
    TokenId,
    TokenRecord,
    TokenState,
    disposable_tokens,
    state_of,
)

__all__ = ["MemoryStore"]


class MemoryStore:
    """Keeps everything in this process. See `tower_server.stores.Store` for the verbs."""

    def __init__(self) -> None:
        # In order of creation, as list_tokens returns them.
        self._tokens: dict[TokenId, TokenRecord] = {}
        # Of both kinds.
        self._clusters: dict[ClusterName, ClusterRecord] = {}
        # By what those are reached that are reached directly.
        self._direct: dict[ClusterName, DirectMember] = {}

    async def add_token(self, token: TokenRecord, now: datetime) -> None:
        tokens = list(self._tokens.values())
        outstanding = sum(state_of(kept, now) is TokenState.READY for kept in tokens)
        if outstanding >= MAX_OUTSTANDING_TOKENS:
            raise TokenLimitReached
        disposable = disposable_tokens(tokens, now)
        if token.id in self._tokens.keys() - disposable:
            raise ValueError(f"there is already a token {token.id}")
        for token_id in disposable:
            del self._tokens[token_id]
        self._tokens[token.id] = token

    async def get_token(self, token_id: TokenId) -> TokenRecord | None:
        return self._tokens.get(token_id)

    async def list_tokens(self) -> list[TokenRecord]:
        return sorted(self._tokens.values(), key=lambda token: token.created_at)

    async def revoke_token(
        self, token_id: TokenId, now: datetime
    ) -> TokenRecord | None:
        token = self._tokens.get(token_id)
        if token is None or token.revoked_at is not None:
            return token
        revoked = dataclasses.replace(token, revoked_at=now)
        self._tokens[token_id] = revoked
        return revoked

    async def use_token(self, use: TokenUse) -> bytes:
        token = self._tokens.get(use.token_id)
        earlier = decide_join(
            use,
            token=token,
            named=self._clusters.get(use.cluster),
            same_uid=self._with_uid(use.member_uid),
        )
        if earlier is not None:
            return earlier
        assert token is not None  # decide_join refuses an unknown token
        self._tokens[token.id] = use.used(token)
        self._clusters[use.cluster] = use.record
        return use.certificate

    async def add_direct(self, member: DirectMember) -> None:
        decide_direct(
            member,
            named=self._clusters.get(member.cluster),
            same_uid=self._with_uid(member.member_uid),
        )
        self._direct[member.cluster] = member
        self._clusters[member.cluster] = member.record

    async def update_direct(self, member: DirectMember) -> DirectMember | None:
        named = self._clusters.get(member.cluster)
        if named is None:
            return None
        decide_direct_update(member, named=named)
        updated = dataclasses.replace(member, added_at=named.joined_at)
        self._direct[member.cluster] = updated
        return updated

    async def get_direct(self, name: ClusterName) -> DirectMember | None:
        return self._direct.get(name)

    async def list_direct(self) -> list[DirectMember]:
        return [self._direct[name] for name in sorted(self._direct)]

    async def get_cluster(self, name: ClusterName) -> ClusterRecord | None:
        return self._clusters.get(name)

    async def list_clusters(self) -> list[ClusterRecord]:
        return [self._clusters[name] for name in sorted(self._clusters)]

    async def remove_cluster(
        self, name: ClusterName, now: datetime
    ) -> ClusterRecord | None:
        removed = self._clusters.pop(name, None)
        self._direct.pop(name, None)
        if removed is not None:
            for token in list(self._tokens.values()):
                if token.cluster == name and state_of(token, now) is TokenState.READY:
                    self._tokens[token.id] = dataclasses.replace(token, revoked_at=now)
        return removed

    async def close(self) -> None:
        pass

    def _with_uid(self, member_uid: str) -> ClusterRecord | None:
        clusters = self._clusters.values()
        return next((c for c in clusters if c.member_uid == member_uid), None)
