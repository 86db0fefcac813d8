"""The server's numbers: by cluster, joins, the front door, and their HTTP port."""

import logging
import socket
from collections import Counter

import aiohttp
import pytest

from shared.http.relay import AnswerCounts
from shared.metrics import MetricsPage
from shared.settings import HostPort
from tests.fakes.metrics import MEMORY, numbers, reading
from tower_server.metrics import serve_metrics, server_metrics
from tower_server.parking import ParkingReading

LOOPBACK = HostPort(host="127.0.0.1", port=0)


async def test_clusters_joins_and_connections_are_counted_by_name() -> None:
    metrics = server_metrics(
        {"alpha": reading(), "beta": reading(sessions=0, rtt_seconds=None)},
        MEMORY,
        ParkingReading(parked=5, resumed=6, expired=7),
        upgrades={"admitted": 8, "busy": 9},
        joins={"joined": 2, "token_used": 1},
        front_door={"sealed": 30},
        direct_answers={
            "beta": AnswerCounts(
                by_apiserver=Counter({200: 5}), by_agent=Counter([502])
            )
        },
        is_draining=False,
    )
    written = numbers((await MetricsPage(lambda: metrics).text()).decode())
    assert written["tower_cluster_connected", (("cluster", "alpha"),)] == 1
    assert written["tower_cluster_connected", (("cluster", "beta"),)] == 0
    assert written["tower_joins_total", (("outcome", "joined"),)] == 2
    assert written["tower_joins_total", (("outcome", "token_used"),)] == 1
    assert written["tower_parked_sessions", ()] == 5
    assert written["tower_expired_sessions_total", ()] == 7
    assert written["tower_tunnel_calls_total", (("outcome", "busy"),)] == 9
    assert written["tower_window_memory_bytes", ()] == 30
    assert written["tower_window_memory_ceiling_bytes", ()] == 200
    assert written["tower_window_memory_held_back_total", ()] == 4
    assert written["tower_draining", ()] == 0
    for who, code, count in (("apiserver", "200", 5), ("server", "502", 1)):
        labels = (("answered_by", who), ("cluster", "beta"), ("code", code))
        assert written["tower_direct_requests_total", labels] == count
    sealed = ("tower_front_door_connections_total", (("outcome", "sealed"),))
    assert written[sealed] == 30
    build = [labels for name, labels in written if name == "tower_build_info"]
    assert dict(build[0])["program"] == "tower-server"


async def test_metrics_are_served_at_one_path_and_the_port_is_free_behind() -> None:
    async with (
        serve_metrics(LOOPBACK, tuple) as at,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"http://{at}/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            assert "process_resident_memory_bytes" in await answer.text()
        async with session.get(f"http://{at}/") as answer:
            assert answer.status == 404
        async with session.post(f"http://{at}/metrics") as answer:
            assert answer.status == 405
    async with serve_metrics(at, tuple):
        pass


async def test_a_server_that_drains_is_not_ready_and_its_successor_may_serve() -> None:
    reason: str | None = None
    async with (
        serve_metrics(LOOPBACK, tuple, lambda: reason) as at,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"http://{at}/readyz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")
        reason = "draining: we stop"
        async with session.get(f"http://{at}/readyz") as answer:
            assert answer.status == 503
            assert await answer.text() == "not ready: draining: we stop\n"
        async with serve_metrics(at, tuple) as same:
            assert same == at


async def test_an_address_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = HostPort(host="127.0.0.1", port=taken.getsockname()[1])
        with pytest.raises(OSError):
            async with serve_metrics(address, tuple):
                raise AssertionError("it serves on a port that is taken")


class Everywhere(HostPort):
    """Claims to be open to other machines; in truth a test binds loopback only."""

    is_loopback = False  # type: ignore[assignment]


@pytest.mark.parametrize(("kind", "warnings"), [(HostPort, 0), (Everywhere, 1)])
async def test_it_is_said_when_others_may_read_it(
    kind: type[HostPort], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tower_server.metrics")
    async with serve_metrics(kind(host="127.0.0.1", port=0), tuple):
        pass
    assert len(caplog.records) == warnings
