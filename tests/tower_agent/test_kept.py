"""The session that an agent keeps for its next dial; the rest is in test_resume.

Covered: it ends when the server's time for it is over, when another is kept, and when a
tunnel begins anew; it does not when that tunnel goes on with it.
"""

import asyncio

from shared.errors import Code
from tests.fakes.virtual_time import in_virtual_time
from tower_agent.kept import KeptSession


class FakePeer:
    resume_seconds = 60


class FakeSession:
    """As much of a session as is looked at."""

    def __init__(self) -> None:
        self.peer = FakePeer()
        self.closed_with: list[tuple[Code, str]] = []

    def close(self, code: Code, reason: str) -> None:
        self.closed_with.append((code, reason))


@in_virtual_time
async def test_what_is_not_fetched_in_time_ends() -> None:
    kept, session = KeptSession(), FakeSession()
    kept.keep(session)  # type: ignore[arg-type]
    await asyncio.sleep(59)
    assert kept.session is session and not session.closed_with
    await asyncio.sleep(2)
    assert kept.session is None
    assert session.closed_with == [
        (Code.SESSION_LOST, "the tunnel was lost for over 60 s")
    ]


@in_virtual_time
async def test_a_tunnel_that_goes_on_with_it_takes_it_over() -> None:
    kept, session = KeptSession(), FakeSession()
    kept.keep(session)  # type: ignore[arg-type]
    assert kept.went_on(session)  # type: ignore[arg-type]
    await asyncio.sleep(100)
    assert kept.session is None and not session.closed_with


@in_virtual_time
async def test_a_tunnel_that_begins_anew_ends_it() -> None:
    kept, session = KeptSession(), FakeSession()
    kept.keep(session)  # type: ignore[arg-type]
    assert not kept.went_on(FakeSession())  # type: ignore[arg-type]
    assert [code for code, _ in session.closed_with] == [Code.SESSION_LOST]
    assert not kept.went_on(FakeSession())  # type: ignore[arg-type]


@in_virtual_time
async def test_only_the_latest_is_kept() -> None:
    kept, earlier, later = KeptSession(), FakeSession(), FakeSession()
    kept.keep(earlier)  # type: ignore[arg-type]
    kept.keep(later)  # type: ignore[arg-type]
    assert kept.session is later and earlier.closed_with and not later.closed_with
    kept.end(Code.GOING_AWAY, "the agent stops")
    assert later.closed_with == [(Code.GOING_AWAY, "the agent stops")]
