"""How a member is: what was last heard of its apiserver, and how that is said over the control stream."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from shared.member.questions import MemberRequest
from shared.words import quoted

__all__ = ["ASK_TIMEOUT_SECONDS", "MemberReport", "ask_member", "read_report"]

# With the pause between two questions still within the 5 s that status promises.
ASK_TIMEOUT_SECONDS = 2.0

# Of a text that an agent sends and an admin reads.
MAX_TEXT_CHARS = 300


@dataclass(frozen=True, kw_only=True)
class MemberReport:
    """What is known of a member. None: not known; no error is a good sign."""

    apiserver_version: str | None = None
    apiserver_error: str | None = None

    def to_json(self) -> dict[str, object]:
        """What is known, for one line of the control stream."""
        return {name: value for name, value in vars(self).items() if value is not None}


def read_report(message: Mapping[str, object]) -> MemberReport:
    """What `to_json` wrote, or a stranger; nothing in it is trusted to be what it should."""
    return MemberReport(
        apiserver_version=_text(message.get("apiserver_version")),
        apiserver_error=_text(message.get("apiserver_error")),
    )


async def ask_member(request: MemberRequest, last: MemberReport) -> MemberReport:
    """Ask the apiserver how it is. Never raises; `last` is what was heard before."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_SECONDS):
            answer = await request("GET", "/version")
    except OSError as error:  # TimeoutError is one
        return _trouble(last, str(error) or "the apiserver does not answer in time")
    if answer.status == 401:
        return _trouble(last, "the apiserver refuses the agent's own credential")
    if answer.status != 200:
        return _trouble(last, f"the apiserver answers {answer.message}")
    return MemberReport(
        apiserver_version=quoted(str(answer.body.get("gitVersion", "?")))
    )


def _trouble(last: MemberReport, text: str) -> MemberReport:
    # The last version that we know stays: it is probably still true.
    return MemberReport(
        apiserver_version=last.apiserver_version, apiserver_error=quoted(text)
    )


def _text(value: object) -> str | None:
    """A text that is safe to show: bounded, without control characters; else nothing."""
    if not isinstance(value, str):
        return None
    return "".join(c for c in value if c.isprintable())[:MAX_TEXT_CHARS]
