"""The server's numbers for Prometheus, on a plain HTTP port of their own; off unless asked for.

/metrics   the numbers
/readyz    for probes: 200 while agents and clients are let in, else 503 with the reason

While a server drains its successor may serve at the same address, if it is ours (SO_REUSEPORT).
Nobody is authenticated there, and the names of clusters are to be read: an address of this
machine's loopback is advisable.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from shared.http.relay import AnswerCounts
from shared.metrics import (
    CONTENT_TYPE,
    Metric,
    MetricsPage,
    build_info,
    counter,
    draining,
    gauge,
    memory_metrics,
    tunnel_metrics,
)
from shared.mux.readings import MemoryReading, TunnelReading
from shared.probe_port import Page, serve_pages
from shared.settings import HostPort
from tower_server.parking import ParkingReading

__all__ = ["serve_metrics", "server_metrics"]

_log = logging.getLogger(__name__)


def server_metrics(
    readings: Mapping[str, TunnelReading],
    memory: MemoryReading,
    parking: ParkingReading,
    *,
    upgrades: Mapping[str, int],
    joins: Mapping[str, int],
    front_door: Mapping[str, int],
    direct_answers: Mapping[str, AnswerCounts],
    is_draining: bool,
) -> Iterable[Metric]:
    """All numbers of a server.

    Args:
        readings: Every known cluster's tunnels; a cluster without sessions is away.
        memory: What all of these hold.
        parking: Sessions that wait for their agent.
        upgrades: How many calls of agents came to what.
        joins: How many join requests ended how.
        front_door: How many connections of the one port came to what.
        direct_answers: What requests to each cluster with a direct connection were answered with.
        is_draining: The server stops; what runs has its time to end.
    """
    yield build_info("tower-server")
    yield draining(is_draining)
    yield gauge(
        "tower_cluster_connected",
        "1 while the cluster's agent is connected, or it is reached directly; 0 while it is away.",
        ("cluster",),
        [((name,), reading.sessions > 0) for name, reading in readings.items()],
    )
    yield from tunnel_metrics(readings, is_server=True)
    yield from memory_metrics(memory)
    yield gauge(
        "tower_parked_sessions",
        "Sessions whose connection is lost and whose streams wait for their agent.",
        (),
        [((), parking.parked)],
    )
    yield counter(
        "tower_expired_sessions_total",
        "Those whose agent did not come back in time.",
        (),
        [((), parking.expired)],
    )
    yield counter(
        "tower_tunnel_calls_total",
        "Calls of agents, by what became of them.",
        ("outcome",),
        [((outcome,), count) for outcome, count in sorted(upgrades.items())],
    )
    yield counter(
        "tower_joins_total",
        "Join requests, by what became of them.",
        ("outcome",),
        [((outcome,), count) for outcome, count in sorted(joins.items())],
    )
    yield counter(
        "tower_front_door_connections_total",
        "Connections to the server's port, by what became of them.",
        ("outcome",),
        [((outcome,), count) for outcome, count in sorted(front_door.items())],
    )
    yield counter(
        "tower_direct_requests_total",
        "Requests to clusters with a direct connection, by who answered (apiserver, or the server) and the status.",
        ("cluster", "answered_by", "code"),
        [
            ((name, who, str(status)), count)
            for name, answers in sorted(direct_answers.items())
            for who, counted in (
                ("apiserver", answers.by_apiserver),
                ("server", answers.by_agent),
            )
            for status, count in sorted(counted.items())
        ],
    )


@asynccontextmanager
async def serve_metrics(
    address: HostPort,
    read: Callable[[], Iterable[Metric]],
    not_ready: Callable[[], str | None] = lambda: None,
) -> AsyncIterator[HostPort]:
    """Serve while the context lasts; gives the address with the real port.

    `not_ready` says why nobody is let in now, if that is so.

    Raises:
        OSError: If the address cannot be bound.
    """
    page = MetricsPage(read)

    async def metrics() -> Page:
        return Page(text=await page.text(), content_type=CONTENT_TYPE)

    async def readyz() -> Page:
        reason = not_ready()
        if reason is None:
            return Page(text="ok\n")
        return Page(text=f"not ready: {reason}\n", status=503)

    pages = {"/metrics": metrics, "/readyz": readyz}
    async with serve_pages(address, pages, reuse_port=True) as at:
        if not address.is_loopback:
            _log.warning(
                "metrics on %s can be read by whoever reaches that address", address
            )
        yield at
