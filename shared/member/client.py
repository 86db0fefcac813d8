"""`MemberRequest` over the pool to the member's apiserver, with a deadline."""

from collections.abc import Mapping
from typing import Any

from shared.http.client import request_json
from shared.http.status import Refusal
from shared.http.upstream import UpstreamPool
from shared.member.questions import MemberAnswer

__all__ = ["MemberClient"]

# The apiserver is next door; a join has 10 s in all and asks a handful of questions.
REQUEST_TIMEOUT_SECONDS = 3.0


class MemberClient:
    """Asks the member's apiserver with the agent's own credential."""

    def __init__(self, pool: UpstreamPool) -> None:
        self._pool = pool

    async def __call__(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> MemberAnswer:
        try:
            status, document = await request_json(
                self._pool,
                method,
                path,
                body,
                content_type=content_type,
                timeout_seconds=REQUEST_TIMEOUT_SECONDS,
            )
        except Refusal as refusal:
            # No answer came; `MemberRequest` says that as an OSError.
            raise ConnectionError(refusal.message) from refusal
        return MemberAnswer(status=status, body=document)
