"""Sessions that wait for their agent; how they go on is in tests/tower_agent/test_resume.py.

Covered: who may take one, that each is taken once, the end of the resume time, the limit per
cluster, and that those that match end with the reason.
"""

import asyncio
from datetime import UTC, datetime

import pytest

from certs.assertion import AgentIdentity
from certs.names import ClusterName
from shared.errors import Code, PeerProtocolError
from shared.mux.replay import Replay
from shared.wire.hello import Hello
from tests.fakes.virtual_time import in_virtual_time
from tower_server.parking import MAX_PARKED_PER_CLUSTER, Parking
from tower_server.registry import LiveSession


class FakeSession:
    """As much of a session as is looked at."""

    def __init__(self, session_id: str) -> None:
        self.replay = Replay()
        self.hello = Hello(session_id=session_id, window_bytes=1, software="server/1")
        self.closed_with: list[tuple[Code, str]] = []

    def close(self, code: Code, reason: str) -> None:
        self.closed_with.append((code, reason))


def identity(
    cluster: str = "alpha", serial: int = 1, key: str = "sha256:00"
) -> AgentIdentity:
    return AgentIdentity(
        cluster=ClusterName(cluster),
        serial=serial,
        public_key_pin=key,
        not_after=datetime.max.replace(tzinfo=UTC),
    )


def park(parking: Parking, session_id: str, cluster: str = "alpha") -> FakeSession:
    hello = Hello(session_id="", window_bytes=1, software="agent/1")
    session = FakeSession(session_id)
    live = LiveSession(identity(cluster), None, hello)  # type: ignore[arg-type]
    parking.park(live, session)  # type: ignore[arg-type]
    return session


@in_virtual_time
async def test_only_its_own_agent_may_take_a_session_and_only_once() -> None:
    parking = Parking(60)
    session = park(parking, "a")
    assert parking.take("a", identity("beta"), 0) is None
    assert parking.take("a", identity(key="sha256:01"), 0) is None
    assert parking.take("b", identity(), 0) is None
    with pytest.raises(PeerProtocolError):
        parking.take("a", identity(), 1)  # of none that were sent
    # With a certificate that was renewed meanwhile it is the same agent.
    taken = parking.take("a", identity(serial=2), 0)
    assert taken is not None and taken.session is session
    assert parking.take("a", identity(), 0) is None
    await asyncio.sleep(100)
    assert not session.closed_with and (parking.resumed, parking.expired) == (1, 0)


@in_virtual_time
async def test_what_nobody_comes_back_for_ends() -> None:
    parking = Parking(60)
    session = park(parking, "a")
    await asyncio.sleep(59)
    assert len(parking) == 1
    await asyncio.sleep(2)
    assert len(parking) == 0 and parking.expired == 1
    assert session.closed_with == [
        (Code.SESSION_LOST, "the tunnel was lost for over 60 s")
    ]


@in_virtual_time
async def test_the_oldest_of_a_cluster_makes_room() -> None:
    parking = Parking(60)
    other = park(parking, "other", "beta")
    sessions = [park(parking, str(n)) for n in range(MAX_PARKED_PER_CLUSTER + 1)]
    assert [bool(session.closed_with) for session in sessions] == [True] + [
        False
    ] * MAX_PARKED_PER_CLUSTER
    assert not other.closed_with


@in_virtual_time
async def test_those_that_match_end_with_the_reason() -> None:
    parking = Parking(60)
    alpha, beta = park(parking, "a"), park(parking, "b", "beta")
    parking.end(lambda live: live.cluster == "alpha", Code.REVOKED, "removed")
    assert alpha.closed_with == [(Code.REVOKED, "removed")] and not beta.closed_with
    assert len(parking) == 1


@in_virtual_time
async def test_an_agent_with_anothers_id_does_not_touch_what_is_parked() -> None:
    parking = Parking(60)
    alpha, beta = park(parking, "same"), park(parking, "same", "beta")
    taken = parking.take("same", identity("beta"), 0)
    assert taken is not None and taken.session is beta
    assert len(parking) == 1 and not alpha.closed_with
