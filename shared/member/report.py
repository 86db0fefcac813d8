"""How a member is: what was last heard of its apiserver, and how that is said over the control stream."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from shared.http.status import Speaker
from shared.member.questions import MemberAnswer, MemberRequest
from shared.words import quoted

__all__ = [
    "ASK_TIMEOUT_SECONDS",
    "COUNT_NODES_EVERY_SECONDS",
    "EXPIRES_SOON",
    "MemberProbe",
    "MemberReport",
    "read_report",
]

# With the pause between two questions still within the 5 s that status promises.
ASK_TIMEOUT_SECONDS = 2.0

# Nodes come and go slowly, and a node is some 20 KiB of JSON.
COUNT_NODES_EVERY_SECONDS = 30.0

# Enough for somebody to come back from a holiday, and less than credentials of people last.
EXPIRES_SOON = timedelta(days=7)

# Of a text that an agent sends and an admin reads.
MAX_TEXT_CHARS = 300

# Kubernetes itself ends at 5,000; what is far beyond is no number of nodes.
MAX_NODE_COUNT = 1_000_000


@dataclass(frozen=True, kw_only=True)
class MemberReport:
    """What is known of a member. None: not known; no error is a good sign."""

    apiserver_version: str | None = None
    apiserver_error: str | None = None
    node_count: int | None = None
    # When what we prove ourselves with to the apiserver ends; None: never, or it is renewed.
    credential_expires_at: datetime | None = None

    def expires_soon(self, now: datetime) -> bool:
        """Whether it is time to give somebody another credential."""
        ends = self.credential_expires_at
        return ends is not None and ends - now < EXPIRES_SOON

    def to_json(self) -> dict[str, object]:
        """What is known, for one line of the control stream."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in vars(self).items()
            if value is not None
        }


def read_report(message: Mapping[str, object]) -> MemberReport:
    """What `to_json` wrote, or a stranger; nothing in it is trusted to be what it should."""
    return MemberReport(
        apiserver_version=_text(message.get("apiserver_version")),
        apiserver_error=_text(message.get("apiserver_error")),
        node_count=_count(message.get("node_count")),
        credential_expires_at=_moment(message.get("credential_expires_at")),
    )


class MemberProbe:
    """Asks the apiserver how it is, again and again, and remembers what it said."""

    def __init__(
        self,
        request: MemberRequest,
        *,
        speaker: Speaker,
        expires_at: Callable[[], datetime | None],
        clock: Callable[[], float],
    ) -> None:
        """Prepare.

        Args:
            speaker: Who we are, for the sentences.
            expires_at: When our credential ends, if it does.
            clock: Monotonic seconds.
        """
        self._request = request
        self._speaker = speaker
        self._expires_at = expires_at
        self._clock = clock
        self._count_nodes_at = clock()
        # What the last answer was, and how long it took.
        self.report = MemberReport()
        self.answered_in_seconds = 0.0

    async def ask(self) -> MemberReport:
        """Ask now. Never raises: what went wrong is in the report, and what was known stays."""
        known = replace(
            self.report, apiserver_error=None, credential_expires_at=self._expires_at()
        )
        try:
            async with asyncio.timeout(ASK_TIMEOUT_SECONDS):
                asked_at = self._clock()
                answer = await self._request("GET", "/version")
                self.answered_in_seconds = self._clock() - asked_at
                if answer.status == 200:
                    known = replace(
                        known,
                        apiserver_version=quoted(
                            str(answer.body.get("gitVersion", "?"))
                        ),
                        node_count=await self._nodes(known.node_count),
                    )
            trouble = self._trouble(answer)
        except OSError as error:  # TimeoutError is one
            trouble = str(error) or "the apiserver does not answer in time"
        if trouble is not None:
            known = replace(known, apiserver_error=quoted(trouble))
        self.report = known
        return known

    def _trouble(self, answer: MemberAnswer) -> str | None:
        if answer.status == 401:
            return f"the apiserver does not accept {self._speaker.credential}"
        if answer.status != 200:
            return f"the apiserver answers {answer.message}"
        return None

    async def _nodes(self, known: int | None) -> int | None:
        """How many there are; not known where we may not look."""
        now = self._clock()
        if now < self._count_nodes_at:
            return known
        answer = await self._request("GET", "/api/v1/nodes?limit=1")
        self._count_nodes_at = now + COUNT_NODES_EVERY_SECONDS
        if answer.status != 200:
            return None
        items = answer.body.get("items")
        metadata = answer.body.get("metadata")
        if not isinstance(items, list) or not isinstance(metadata, dict):
            return None
        return _count(len(items) + (metadata.get("remainingItemCount") or 0))


def _text(value: object) -> str | None:
    """A text that is safe to show: bounded, without control characters; else nothing."""
    if not isinstance(value, str):
        return None
    return "".join(c for c in value if c.isprintable())[:MAX_TEXT_CHARS]


def _count(value: object) -> int | None:
    # bool is an int to Python, and no number of anything.
    if type(value) is not int or not 0 <= value <= MAX_NODE_COUNT:
        return None
    return value


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None
