"""The registry over fake connections: what is known, who is picked, who waits, what status says.

Covered: the newest usable session wins, sessions that drain, loss and return, the limit
on sessions, waiting (woken, in vain, cancelled, for a cluster that goes), status in every
state with its times, streams that count, cut and forget; sessions without an agent; who
listens is told of each change.
"""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace

import pytest

from certs.assertion import AgentIdentity
from certs.names import ClusterName
from shared.errors import Code
from shared.mux.counters import Counters
from shared.wire.hello import Hello
from tests.fakes.host_side import until
from tests.fakes.session_pair import SessionPair
from tower_server import registry as module
from tower_server.registry import (
    MAX_SESSIONS_PER_CLUSTER,
    LiveSession,
    MemberReport,
    Registry,
)

ALPHA = ClusterName("alpha")


def sessions_of(pair: SessionPair) -> LiveSession:
    """A live session over a real core."""
    live = session()
    live.connection.session = pair.server.session
    return live


def test_totals_of_a_cluster_outlive_its_sessions() -> None:
    registry = known("alpha", "beta")
    received = 0
    for _ in range(2):
        pair = SessionPair()
        live = sessions_of(pair)
        registry.add(live)
        pair.server.open()
        pair.agent.open("control")
        pair.settle()
        reading = registry.readings()["alpha"]
        assert (reading.sessions, reading.open_streams) == (1, 1)
        registry.remove(live)
        received += pair.agent.session.counters.sent_bytes
    reading = registry.readings()["alpha"]
    assert (reading.sessions, reading.open_streams) == (0, 0)
    assert reading.counters.opened_by_server == 2
    assert reading.counters.received_bytes == received > 0
    assert registry.readings()["beta"].counters.received_bytes == 0
    assert list(registry.readings()) == ["alpha", "beta"]


class FakeConnection:
    """As much of a TunnelConnection as the registry looks at."""

    def __init__(self, targets: list[str]) -> None:
        self.usable = True
        self.closed_with: tuple[Code, str] | None = None
        streams = {n: SimpleNamespace(target=t) for n, t in enumerate(targets)}
        liveness = SimpleNamespace(round_trip_seconds=0.025)
        self.session = SimpleNamespace(streams=streams, liveness=liveness)
        self.session.own_stream_count = len(targets)
        self.session.counters = Counters()

    def close(self, code: Code, reason: str) -> None:
        self.usable = False
        self.closed_with = (code, reason)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The times that were read, in order: each read is a second after the last."""
    reads: list[datetime] = []
    seconds = count()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            reads.append(datetime(2026, 1, 1, 0, 0, next(seconds), tzinfo=UTC))
            return reads[-1]

    monkeypatch.setattr(module, "datetime", Clock)
    return reads


def session(
    name: str = "alpha",
    *targets: str,
    key: str = "sha256:00",
    place: str = "",
    by: str = "",
) -> LiveSession:
    identity = AgentIdentity(
        cluster=ClusterName(name),
        serial=1,
        public_key_pin=key,
        not_after=datetime.max.replace(tzinfo=UTC),
    )
    return LiveSession(
        identity,
        FakeConnection(list(targets)),  # type: ignore[arg-type]
        Hello(
            session_id="", window_bytes=1, software="agent/1", place=place, instance=by
        ),
    )


def connection_of(live: LiveSession) -> FakeConnection:
    assert isinstance(live.connection, FakeConnection)
    return live.connection


def known(*names: str) -> Registry:
    registry = Registry()
    for name in names or ("alpha",):
        registry.know(ClusterName(name), f"uid of {name}")
    return registry


# Picking


def test_the_newest_session_gets_new_streams() -> None:
    registry = known()
    assert registry.pick(ALPHA) is None
    sessions = [session() for _ in range(3)]
    for live in sessions:
        assert registry.add(live)
        assert registry.pick(ALPHA) is live
    registry.remove(sessions[2])
    assert registry.pick(ALPHA) is sessions[1]
    connection_of(sessions[1]).usable = False  # it drains
    assert registry.pick(ALPHA) is sessions[0]
    registry.remove(sessions[0])
    assert registry.pick(ALPHA) is None


def loads(*sessions: LiveSession) -> list[int]:
    return [connection_of(live).session.own_stream_count for live in sessions]


def test_tunnels_of_one_agent_share_new_streams() -> None:
    registry = known()
    old = session(place="node-1", by="first")
    ours = [session(place="node-2", by="second") for _ in range(3)]
    for live in (old, *ours):
        registry.add(live)
    connection_of(ours[1]).session.own_stream_count = 5  # a busy one
    for _ in range(9):
        picked = registry.pick(ALPHA)
        assert picked is not None
        connection_of(picked).session.own_stream_count += 1
    assert loads(old, *ours) == [0, 5, 5, 4]


def test_short_requests_take_turns_over_the_tunnels() -> None:
    registry = known()
    ours = [session(place="node", by="one") for _ in range(3)]
    for live in ours:
        registry.add(live)
    picked = [registry.pick(ALPHA) for _ in range(7)]
    assert [ours.index(live) for live in picked if live] == [0, 1, 2, 0, 1, 2, 0]


def test_a_tunnel_that_is_lost_costs_nothing_and_the_last_one_little() -> None:
    """The others take new streams at once; then those of an older process that is still there."""
    registry = known()
    old = session(place="node-1", by="first")
    ours = [session(place="node-2", by="second") for _ in range(2)]
    for live in (old, *ours):
        registry.add(live)
    registry.remove(ours[1])
    assert {registry.pick(ALPHA) for _ in range(3)} == {ours[0]}
    connection_of(ours[0]).usable = False
    assert registry.pick(ALPHA) is old
    status = registry.status(ALPHA)
    assert status is not None and status.state == "connected"


def test_status_tells_how_each_tunnel_stands() -> None:
    registry = known()
    old = session("alpha", "sealed", "control", place="node-1", by="first")
    ours = [session(place="node-2", by="second") for _ in range(3)]
    for live in (old, *ours):
        registry.add(live)
    connection_of(ours[0]).usable = False
    status = registry.status(ALPHA)
    assert status is not None and status.sessions == 4
    states = [tunnel.state for tunnel in status.tunnels]
    assert states == ["standby", "draining", "active", "active"]
    first = status.tunnels[0]
    assert (first.open_streams, first.rtt_seconds) == (1, 0.025)
    assert (first.since, first.agent_version) == (old.connected_at, "agent/1")


def test_no_two_agents_are_taken_for_one() -> None:
    one = session(place="node", by="one")
    assert one.is_sibling_of(session(place="node", by="one"))
    for other in (
        session(place="node", by="two"),
        session(place="another", by="one"),
        session("beta", place="node", by="one"),
        session(place="node", by="one", key="sha256:01"),
    ):
        assert not one.is_sibling_of(other)
    assert not session().is_sibling_of(session()), "who says nothing is alone"


def test_clusters_do_not_see_each_others_sessions() -> None:
    registry = known("alpha", "beta")
    registry.add(session("beta"))
    assert registry.pick(ALPHA) is None
    assert registry.pick(ClusterName("gamma")) is None


def test_a_session_of_an_unknown_cluster_is_not_taken_in() -> None:
    registry = known("beta")
    assert not registry.add(session("alpha"))
    registry.remove(session("alpha"))  # harmless
    registry.left(session("alpha"))
    assert not list(registry.sessions()) and not registry.knows("alpha")


def test_too_many_sessions_end_the_oldest() -> None:
    registry = known()
    sessions = [session() for _ in range(MAX_SESSIONS_PER_CLUSTER + 1)]
    for live in sessions:
        registry.add(live)
    ended = [live for live in sessions if connection_of(live).closed_with]
    assert ended == sessions[:1]
    closed_with = connection_of(ended[0]).closed_with
    assert closed_with is not None and closed_with[0] is Code.REPLACED
    assert list(registry.sessions()) == sessions[1:]
    registry.remove(ended[0])  # its loss, when it comes, changes nothing
    status = registry.status(ALPHA)
    assert status is not None and status.state == "connected"


async def test_cutting_ends_a_clusters_sessions_and_no_others() -> None:
    registry = known("alpha", "beta")
    alphas, beta = [session("alpha"), session("alpha")], session("beta")
    for live in (*alphas, beta):
        registry.add(live)
    await registry.cut(ALPHA, Code.REVOKED, "removed")
    await registry.cut(ClusterName("gamma"), Code.REVOKED, "never was")
    assert all(
        connection_of(a).closed_with == (Code.REVOKED, "removed") for a in alphas
    )
    assert connection_of(beta).closed_with is None


def test_a_forgotten_cluster_is_unknown_also_when_its_sessions_end_later() -> None:
    registry = known()
    live = session()
    registry.add(live)
    registry.forget(ALPHA)
    registry.forget(ALPHA)
    assert not registry.knows("alpha") and registry.status(ALPHA) is None
    registry.remove(live)
    assert registry.all() == []


def test_knowing_again_keeps_sessions_and_a_uid_that_is_not_said() -> None:
    registry = known()
    live = session()
    registry.add(live)
    registry.know(ALPHA, None)
    status = registry.status(ALPHA)
    assert registry.pick(ALPHA) is live
    assert status is not None and status.member_uid == "uid of alpha"


# Waiting


async def test_who_waits_is_woken_by_the_return() -> None:
    registry = known()
    loop = asyncio.get_running_loop()
    waiting = [loop.create_task(registry.wait_for(ALPHA, 5.0)) for _ in range(3)]
    await until(lambda: len(registry._clusters[ALPHA].waiters) == 3)
    live = session()
    registry.add(live)
    async with asyncio.timeout(1):
        assert await asyncio.gather(*waiting) == [live] * 3
    assert not registry._clusters[ALPHA].waiters


async def test_who_is_woken_by_a_session_that_is_gone_again_waits_on() -> None:
    registry = known()
    loop = asyncio.get_running_loop()
    waiting = loop.create_task(registry.wait_for(ALPHA, 5.0))
    await until(lambda: registry._clusters[ALPHA].waiters)
    short_lived, second = session(), session()
    registry.add(short_lived)
    connection_of(short_lived).usable = False
    await until(lambda: registry._clusters[ALPHA].waiters)
    registry.add(second)
    async with asyncio.timeout(1):
        assert await waiting is second


async def test_waiting_ends_by_time_by_cancelling_and_when_the_cluster_goes() -> None:
    registry = known()
    loop = asyncio.get_running_loop()
    assert await registry.wait_for(ALPHA, 0.01) is None
    cancelled = loop.create_task(registry.wait_for(ALPHA, 5.0))
    forgotten = loop.create_task(registry.wait_for(ALPHA, 5.0))
    cluster = registry._clusters[ALPHA]
    await until(lambda: len(cluster.waiters) == 2)
    cancelled.cancel()
    await asyncio.wait((cancelled,))
    assert cancelled.cancelled()
    registry.forget(ALPHA)
    async with asyncio.timeout(1):
        assert await forgotten is None
    assert not cluster.waiters


async def test_nobody_waits_for_the_connected_nor_for_the_unknown() -> None:
    registry = known()
    live = session()
    registry.add(live)
    async with asyncio.timeout(1):
        assert await registry.wait_for(ALPHA, 1e9) is live
        assert await registry.wait_for(ClusterName("gamma"), 1e9) is None


# Status


def test_a_cluster_that_was_never_here_says_so() -> None:
    (status,) = known().all()
    assert (status.name, status.state, status.since) == ("alpha", "never", None)
    assert (status.sessions, status.open_streams, status.rtt_seconds) == (0, 0, None)


def test_a_connected_cluster_tells_all_that_is_known() -> None:
    registry = known()
    live = session("alpha", "control", "sealed", "tcp/web", "sealed")
    live.report = MemberReport(apiserver_version="v1.36.0", apiserver_error="slow")
    registry.add(live)
    status = registry.status(ALPHA)
    assert status is not None
    assert (status.state, status.since) == ("connected", live.connected_at)
    assert (status.agent_version, status.rtt_seconds) == ("agent/1", 0.025)
    assert (status.apiserver_version, status.apiserver_error) == ("v1.36.0", "slow")
    assert (status.open_streams, status.sessions) == (3, 1)


def test_streams_of_old_sessions_count_and_control_streams_do_not() -> None:
    registry = known()
    old = session("alpha", "sealed", "control", "control")
    registry.add(old)
    registry.add(session("alpha", "sealed", "sealed"))  # no control stream yet
    connection_of(old).usable = False
    status = registry.status(ALPHA)
    assert status is not None and (status.open_streams, status.sessions) == (3, 2)


def test_since_is_when_the_state_began(clock: list[datetime]) -> None:
    registry = known()

    def now() -> tuple[str, datetime | None]:
        status = registry.status(ALPHA)
        assert status is not None
        return status.state, status.since

    first, second = session(), session()  # reads 0 and 1
    registry.add(first)
    registry.add(second)
    assert now() == ("connected", clock[0])
    registry.remove(first)
    assert now() == ("connected", clock[0])
    registry.remove(second)  # read 2
    assert now() == ("away", clock[2])
    third = session()  # read 3
    registry.add(third)
    assert now() == ("connected", clock[3])
    registry.remove(third)  # read 4
    assert now() == ("away", clock[4]) and len(clock) == 5


def test_a_cluster_whose_only_session_drains_is_away_since_then(
    clock: list[datetime],
) -> None:
    registry = known()
    live = session("alpha", "sealed")
    live.report = MemberReport(apiserver_version="v1.36.0")
    registry.add(live)
    connection_of(live).usable = False
    registry.left(live)  # read 1
    status = registry.status(ALPHA)
    assert status is not None
    assert (status.state, status.since) == ("away", clock[1])
    assert (status.open_streams, status.sessions) == (1, 1)
    registry.remove(live)
    status = registry.status(ALPHA)
    assert status is not None
    assert (status.since, status.apiserver_version) == (clock[1], "v1.36.0")
    back = session()  # read 2
    registry.add(back)
    status = registry.status(ALPHA)
    assert status is not None
    assert (status.state, status.since) == ("connected", clock[2])


def test_a_session_that_we_are_closing_is_away_with_a_time() -> None:
    registry = known()
    live = session()
    registry.add(live)
    connection_of(live).usable = False
    first, again = registry.status(ALPHA), registry.status(ALPHA)
    assert first is not None and again is not None
    assert first.state == "away" and first.since is not None
    assert again.since == first.since


def test_all_clusters_come_by_name() -> None:
    registry = known("gamma", "alpha", "beta")
    assert [status.name for status in registry.all()] == ["alpha", "beta", "gamma"]


def test_a_session_without_an_agent_is_only_worth_what_it_reaches(
    clock: list[datetime],
) -> None:
    registry = known()

    def now() -> tuple[str, datetime | None]:
        status = registry.status(ALPHA)
        assert status is not None
        return status.state, status.since

    live = sessions_of(SessionPair())  # read 0
    live.reaches_member = False
    registry.add(live)
    assert now() == ("away", clock[0])
    # Streams are opened all the same: there is somebody who says why it cannot be.
    assert registry.pick(ALPHA) is live
    registry.reach(live, reaches=True)  # read 1
    registry.reach(live, reaches=True)  # read 2: nothing new
    assert now() == ("connected", clock[1])
    assert registry.readings()["alpha"].sessions == 1
    live.report = MemberReport(apiserver_version="v1", apiserver_error="refused")
    registry.reach(live, reaches=False)  # read 3
    registry.reach(live, reaches=False)
    assert now() == ("away", clock[3])
    status = registry.status(ALPHA)
    assert status is not None
    assert (status.apiserver_version, status.apiserver_error) == ("v1", "refused")
    assert registry.readings()["alpha"].sessions == 0
    registry.remove(live)
    status = registry.status(ALPHA)
    assert status is not None and status.since == clock[3]
    # Nobody asks any more, so nobody knows.
    assert status.apiserver_error is None


def test_who_has_no_wire_is_told_how_far_the_member_is() -> None:
    registry = known()
    live = sessions_of(SessionPair())
    live.member_rtt_seconds = 0.012
    registry.add(live)
    status = registry.status(ALPHA)
    assert status is not None and status.rtt_seconds == 0.012
    assert registry.readings()["alpha"].rtt_seconds == 0.012


def test_who_listens_is_told_of_each_change_and_of_no_number() -> None:
    told: list[ClusterName] = []
    registry = known("alpha")
    registry.listen(told.append)

    def was_told() -> bool:
        was, expected = list(told), [ALPHA]
        told.clear()
        return was == expected

    registry.know(ALPHA, None)
    assert told == []
    registry.know(ALPHA, "uid")
    assert was_told()
    live = session()
    registry.add(live)
    assert was_told()
    live.report = MemberReport(apiserver_version="v1")
    assert was_told()
    live.report = MemberReport(apiserver_version="v1")
    assert told == []
    registry.reach(live, reaches=False)
    assert was_told()
    registry.left(live)
    assert was_told()
    registry.remove(live)
    assert was_told()
    registry.remove(live)
    assert told == []
    registry.forget(ALPHA)
    assert was_told()


def test_a_renewed_certificate_is_the_same_agent_s() -> None:
    registry = known("alpha")
    first, other = session(place="node"), session(key="sha256:01")
    for each in (other, first):
        registry.add(each)
    soon = datetime(2026, 12, 24, tzinfo=UTC)
    registry.renewed(replace(first.identity, serial=2, not_after=soon))
    assert first.identity.serial == 2 and other.identity.serial == 1
    assert registry.certificate_ends_at(ClusterName("alpha")) == soon
    assert registry.certificate_ends_at(ClusterName("beta")) is None
    registry.renewed(replace(first.identity, cluster=ClusterName("beta")))
