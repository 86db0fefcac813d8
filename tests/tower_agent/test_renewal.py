"""The agent's side of a renewal, against a real server: in time, late, refused, forged, and kept.

Covered: the stored credentials change and nothing else about them; what the agent was started with
(--ca-file) is not stored; an answer that is not to be trusted changes nothing; a server of an earlier
version has no such path; the schedule, in virtual time.
"""

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web

from certs.chains import parse_certificates
from shared.member.preflight import MemberFacts
from tests.fakes.join_server import JoinServer, join_server
from tests.fakes.virtual_time import VirtualTimeLoop
from tower_agent.credentials import Credentials, DirectoryStore
from tower_agent.enrol import JoinSettings, obtain_credentials
from tower_agent.renewal import (
    SPREAD_SECONDS,
    RenewalFailed,
    Renewer,
    good_credentials,
    renewed,
)


async def facts() -> MemberFacts:
    return MemberFacts(uid="uid-a", apiserver_version="v1.37.0")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[JoinServer]:
    async with join_server(tmp_path / "ca") as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "agent")


@pytest.fixture
async def credentials(server: JoinServer, store: DirectoryStore) -> Credentials:
    settings = JoinSettings(agent_version="0.2.0")
    return await obtain_credentials(store, await server.invite(), facts, settings)


async def test_the_key_stays_and_the_certificate_is_new(
    credentials: Credentials,
) -> None:
    fresh = await renewed(credentials)
    assert fresh.key_pem == credentials.key_pem
    assert fresh.certificate_pem != credentials.certificate_pem
    changed = {"certificate_pem": credentials.certificate_pem}
    assert dataclasses.replace(fresh, **changed) == credentials


async def test_what_is_kept_is_the_certificate_and_not_how_this_start_dials(
    credentials: Credentials, store: DirectoryStore
) -> None:
    through = dataclasses.replace(
        credentials,
        outer_mode="custom",
        outer_ca_pem=credentials.ca_pem,
    )
    used: list[Credentials] = []
    await Renewer(through, store, used.append).renew()
    kept = await store.load()
    assert kept is not None and kept.outer_mode == "tower"
    assert (
        kept.certificate_pem == used[0].certificate_pem != credentials.certificate_pem
    )
    assert used[0].outer_mode == "custom"


async def test_a_removed_cluster_is_told_for_good(
    server: JoinServer, credentials: Credentials
) -> None:
    await server.store.remove_cluster(credentials.cluster, datetime.now(UTC))
    with pytest.raises(RenewalFailed, match="tower token create alpha") as caught:
        await renewed(credentials)
    assert caught.value.final


async def test_too_late_is_said_without_asking(
    server: JoinServer, credentials: Credentials
) -> None:
    before = list(server.requests)
    much_later = credentials.not_after + timedelta(days=91)
    with pytest.raises(RenewalFailed, match="too long ago") as caught:
        await renewed(credentials, now=lambda: much_later)
    assert caught.value.final and server.requests == before


@pytest.mark.parametrize(
    ("status", "body", "complaint"),
    [
        (404, "404: Not Found", "may be an older one"),
        (200, "{}", "may be an older one"),
        (200, '{"answer": "a.b.c"}', "not to be trusted"),
        (200, '{"answer": 7}', "may be an older one"),
    ],
)
async def test_another_s_answer_changes_nothing(
    server: JoinServer,
    credentials: Credentials,
    store: DirectoryStore,
    status: int,
    body: str,
    complaint: str,
) -> None:
    async def other(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    server.intercept = other
    with pytest.raises(RenewalFailed, match=complaint) as caught:
        await Renewer(credentials, store, lambda _: None).renew()
    assert not caught.value.final
    assert await store.load() == credentials


async def test_a_good_certificate_is_left_alone_at_the_start(
    server: JoinServer, credentials: Credentials, store: DirectoryStore
) -> None:
    before = list(server.requests)
    assert await good_credentials(credentials, store) is credentials
    assert server.requests == before


async def test_a_member_that_was_off_for_weeks_renews_at_its_start(
    tmp_path: Path, store: DirectoryStore
) -> None:
    clock = [datetime.now(UTC)]
    async with join_server(tmp_path / "late", clock=lambda: clock[0]) as server:
        settings = JoinSettings(agent_version="0.2.0")
        first = await obtain_credentials(store, await server.invite(), facts, settings)
        clock[0] = first.not_after + timedelta(days=20)
        fresh = await good_credentials(first, store, now=lambda: clock[0])
        assert clock[0] < fresh.not_after
        assert await store.load() == fresh


class Schedule:
    """A renewer whose renewals are counted; time is the loop's."""

    def __init__(
        self, credentials: Credentials, outcomes: list[Exception | None]
    ) -> None:
        loop = asyncio.get_running_loop()
        start = parse_certificates(credentials.certificate_pem)[0].not_valid_before_utc
        self.at: list[float] = []
        self.renewer = Renewer(
            credentials,
            DirectoryStore(Path("unused")),
            lambda _: None,
            now=lambda: start + timedelta(seconds=loop.time()),
            rng=random.Random(1),
        )

        async def renew() -> None:
            self.at.append(loop.time())
            outcome = outcomes.pop(0)
            if outcome is not None:
                raise outcome
            raise RenewalFailed("enough", final=True)

        self.renewer.renew = renew  # type: ignore[method-assign]


def test_it_comes_after_two_thirds_of_the_life_and_again_after_a_failure(
    tmp_path: Path,
) -> None:
    async def joined() -> Credentials:
        async with join_server(tmp_path / "ca") as server:
            settings = JoinSettings(agent_version="0.2.0")
            kept = DirectoryStore(tmp_path / "agent")
            return await obtain_credentials(
                kept, await server.invite(), facts, settings
            )

    credentials = asyncio.run(joined())
    certificate = parse_certificates(credentials.certificate_pem)[0]
    life = (
        certificate.not_valid_after_utc - certificate.not_valid_before_utc
    ).total_seconds()

    async def scenario() -> list[float]:
        schedule = Schedule(
            credentials, [RenewalFailed("away"), RenewalFailed("away"), None]
        )
        await schedule.renewer.run()
        return schedule.at

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        first, second, third = runner.run(scenario())
    assert life * 2 / 3 <= first <= life * 2 / 3 + SPREAD_SECONDS
    assert 10 <= second - first <= 60 and 20 <= third - second <= 120
