"""One JSON request to the member's apiserver, as the parts around the join need it.

They take the callable, not the connection pool, so that they can be used before there is one
and tested with a real one of any make.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["MERGE_PATCH", "MemberAnswer", "MemberRequest"]

MERGE_PATCH = "application/merge-patch+json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberAnswer:
    """Status and JSON body of an apiserver's answer; the body may hold secrets and is not shown."""

    status: int
    body: Mapping[str, Any] = dataclasses.field(repr=False)

    @property
    def message(self) -> str:
        """The message of a `Status` object, or the bare HTTP status."""
        return str(self.body.get("message") or f"HTTP {self.status}")


class MemberRequest(Protocol):
    """Sends one request with the agent's own credential and reads the whole JSON answer.

    A body that is no JSON object comes back as an empty one. No status raises; OSError (TimeoutError
    and ssl.SSLError are such) means that there was no answer. Implementations have a deadline of
    a few seconds.
    """

    async def __call__(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> MemberAnswer: ...
